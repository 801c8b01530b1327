// The Python module of the suffix structures: token arrays in, drafts out, the GIL released while they work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "exact_tree.h"
#include "group_tree.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::suffix;

namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

PyObject* number(int32_t value) { return PyLong_FromLong(value); }
PyObject* number(float value) { return PyFloat_FromDouble(value); }

template <class T>
nb::object listed(const std::vector<T>& values) {
  PyObject* out = PyList_New(Py_ssize_t(values.size()));
  if (!out) nb::raise_python_error();
  for (size_t i = 0; i < values.size(); ++i) PyList_SetItem(out, Py_ssize_t(i), number(values[i]));
  return nb::steal(out);
}

nb::tuple answer(const Draft& draft) { return nb::make_tuple(listed(draft.tokens), listed(draft.parents), listed(draft.chances), draft.match); }

}  // namespace

NB_MODULE(_suffix, m) {
  m.doc() = "Drafts from the texts of a group. statepool.rollout.suffix is its face.";
  nb::class_<GroupTree>(m, "GroupTree", "Texts of one group; what followed the longest context in common.")
      .def(
          "__init__",
          [](GroupTree* self, int depth, int places, size_t budget) {
            if (depth < 2 || places < 1) throw nb::value_error("depth: at least 2; places: at least 1");
            new (self) GroupTree(depth, places, budget);
          },
          "depth"_a = 24, "places"_a = 16, "budget"_a = size_t(1) << 40)
      .def(
          "append",
          [](GroupTree& self, int32_t text, const Tokens& tokens) {
            nb::gil_scoped_release free;
            self.append(text, tokens.data(), tokens.shape(0));
          },
          "text"_a, "tokens"_a, "Add int32 tokens to a text, which begins with its first.")
      .def("remove", &GroupTree::remove, "text"_a, "Forget a text.")
      .def("length", &GroupTree::length, "text"_a, "Tokens of a text; 0 if it is not here.")
      .def_prop_ro("texts", &GroupTree::texts, "How many texts are here.")
      .def_prop_ro("bytes", &GroupTree::bytes, "Memory in use.")
      .def(
          "draft",
          [](GroupTree& self, int32_t text, int budget, int paths, float least) {
            Draft draft;
            {
              nb::gil_scoped_release free;
              draft = self.draft(text, budget, paths, least);
            }
            return answer(draft);
          },
          "text"_a, "budget"_a, "paths"_a = 1, "least"_a = 0.1f, "Tokens, parents, chances and length of the match.");
  nb::class_<ExactTree>(m, "ExactTree", "A trie that answers as ArcticInference's suffix tree does.")
      .def(nb::init<int>(), "depth"_a = 24)
      .def(
          "append",
          [](ExactTree& self, int32_t text, const Tokens& tokens) {
            nb::gil_scoped_release free;
            self.append(text, tokens.data(), tokens.shape(0));
          },
          "text"_a, "tokens"_a, "Add int32 tokens to a text.")
      .def_prop_ro("bytes", &ExactTree::bytes, "Memory in use.")
      .def(
          "speculate",
          [](const ExactTree& self, const Tokens& context, int most, float factor, float offset, float least, bool tree) {
            Draft draft;
            {
              nb::gil_scoped_release free;
              draft = self.speculate(context.data(), context.shape(0), most, factor, offset, least, tree);
            }
            return nb::make_tuple(listed(draft.tokens), listed(draft.parents), listed(draft.chances), draft.match, draft.score);
          },
          "context"_a, "most"_a, "factor"_a = 1.0f, "offset"_a = 0.0f, "least"_a = 0.1f, "tree"_a = false,
          "Tokens, parents, chances, length of the match and sum of the chances.");
}
