// Reading a store from Python: what its owner and a reader have in common, and the reader.
#include "python_view.h"
#include "reader.h"

using namespace statepool::store;

namespace {

class PyReader final : public PyView {
 public:
  explicit PyReader(const std::string& folder) : reader_(std::make_shared<Reader>(folder)) {}
  void close() { reader_.reset(); }
  uint32_t structure(const std::string& name, int kind) { return open().structure(name, static_cast<Kind>(kind)); }

 protected:
  View& view() const override {
    open().follow();
    return open();
  }
  void see(uint64_t lsn) const override {
    if (!open().must_wait(lsn)) return;
    const std::shared_ptr<Reader> reader = reader_;  // another thread may close it meanwhile
    nb::gil_scoped_release released;
    reader->wait(lsn);
  }

 private:
  Reader& open() const {
    if (reader_ == nullptr) throw StoreError(Fault::read_only, "store: it is closed");
    return *reader_;
  }
  std::shared_ptr<Reader> reader_;
};

}  // namespace

void bind_view(nb::module_& m) {
  nb::class_<Range>(m, "Range")
      .def("__init__",
           [](Range* self, const nb::object& low, const nb::object& high, bool include_low, bool include_high, bool reverse) {
             new (self) Range{};
             self->has_low = !low.is_none();
             self->has_high = !high.is_none();
             if (self->has_low) self->low = view_of(low);
             if (self->has_high) self->high = view_of(high);
             self->include_low = include_low;
             self->include_high = include_high;
             self->reverse = reverse;
           },
           nb::arg("low").none(), nb::arg("high").none(), nb::arg("include_low") = true,
           nb::arg("include_high") = false, nb::arg("reverse") = false)
      .def("parts", [](const Range& r) {
        const auto bound = [](bool has, const std::string& b) { return has ? nb::object(to_bytes(b)) : nb::none(); };
        return nb::make_tuple(bound(r.has_low, r.low), bound(r.has_high, r.high), r.include_low, r.include_high, r.reverse);
      });

  nb::class_<PyView>(m, "View")
      .def("structures", &PyView::structures)
      .def("get", &PyView::get, nb::arg("id"), nb::arg("key").none(), nb::arg("default") = nb::none())
      .def("get_many", &PyView::get_many, nb::arg("id"), nb::arg("keys"))
      .def("lookup", &PyView::lookup, nb::arg("id"), nb::arg("key").none())
      .def("range", &PyView::range, nb::arg("id"), nb::arg("range"), nb::arg("limit"))
      .def("scan", &PyView::scan, nb::arg("id"), nb::arg("cursor"))
      .def("peek", &PyView::peek, nb::arg("id"), nb::arg("start"), nb::arg("limit"))
      .def("dead", &PyView::dead, nb::arg("id"), nb::arg("limit"))
      .def("size", &PyView::size, nb::arg("id"))
      .def("last_change", &PyView::last_change, nb::arg("id"))
      .def_prop_ro("retries", &PyView::retries)
      .def_prop_ro("applied_lsn", &PyView::applied_lsn)
      .def_prop_ro("durable_lsn", &PyView::durable_lsn);

  nb::class_<PyReader, PyView>(m, "Reader")
      .def(nb::init<const std::string&>(), nb::arg("path"))
      .def("close", &PyReader::close)
      .def("structure", &PyReader::structure, nb::arg("name"), nb::arg("kind"));
}
