// The Python module of the topology room: gluings in and out as 24 * neighbour + permutation, the lock released meanwhile.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <numeric>

#include "surface.h"
#include "triangulation.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::topology;

namespace {

using Codes = std::vector<int32_t>;

void check(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

Triangulation read(const Codes& codes) {
  check(!codes.empty() && codes.size() % 4 == 0, "gluing: must hold four numbers per tetrahedron");
  Triangulation tri;
  const int n = static_cast<int>(codes.size()) / 4;
  tri.tets.resize(n);
  for (int i = 0; i < 4 * n; ++i) {
    check(codes[i] >= 0 && codes[i] < 24 * n, "gluing: a face has no neighbour");
    tri.tets[i / 4][i % 4] = {codes[i] / 24, codes[i] % 24};
  }
  for (int i = 0; i < 4 * n; ++i) {
    const Side side = tri.tets[i / 4][i % 4];
    const int face = at(side.perm, i % 4);
    const Side back = tri.tets[side.tet][face];
    check(back.tet == i / 4 && back.perm == perms.inverse[side.perm] && 4 * side.tet + face != i,
          "gluing: two faces disagree about their gluing");
  }
  return tri;
}

Codes write(const Triangulation& tri) {
  Codes codes;
  for (const auto& tet : tri.tets)
    for (const Side& side : tet) codes.push_back(24 * side.tet + side.perm);
  return codes;
}

int64_t arcs(const Triangulation& tri) { return int64_t{6} * tri.size(); }

Codes attach_codes(const Codes& codes, const std::vector<int32_t>& weights) {
  const Triangulation tri = read(codes);
  check(static_cast<int64_t>(weights.size()) == arcs(tri), "curve: must have six weights per tetrahedron");
  nb::gil_scoped_release free;
  return write(attach(tri, weights));
}

using Log = std::vector<std::tuple<int, int, int>>;

std::pair<Codes, Log> reduce(const Codes& codes, uint64_t seed, int ups, int patience) {
  Triangulation tri = read(codes);
  std::vector<Move> log;
  {
    nb::gil_scoped_release free;
    Random random(seed);
    shake(tri, random, ups, patience, log);
  }
  Log moves;
  for (const Move& move : log) moves.emplace_back(move.kind, move.tet, move.place);
  return {write(tri), moves};
}

nb::object apply(const Codes& codes, int kind, int tet, int place) {
  Triangulation tri = read(codes);
  check(kind >= 0 && kind < 3 && tet >= 0 && tet < tri.size() && place >= 0 && place < (kind ? 6 : 4), "move: out of range");
  if (!tri.apply({kind, tet, place})) return nb::none();
  return nb::cast(write(tri));
}

nb::object drill(const Codes& codes, int tet, int edge) {
  Triangulation tri = read(codes);
  check(tet >= 0 && tet < tri.size() && edge >= 0 && edge < 6, "edge: out of range");
  std::vector<Step> steps;
  if (!collapse(tri, tet, edge, steps)) return nb::none();
  std::vector<std::tuple<int, int, int, int, int>> meridian;
  for (const Step& step : steps) meridian.emplace_back(step.tet, step.corner, step.face, step.from, step.to);
  return nb::make_tuple(write(tri), meridian);
}

nb::tuple skeleton(const Codes& codes) {
  const Skeleton found = read(codes).skeleton();
  return nb::make_tuple(found.edge, found.vertex, found.degree, found.euler, found.valid);
}

using Table = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;

class Model {
 public:
  Model(std::vector<int32_t> across, std::vector<int32_t> edge, const Table& matrix, const std::vector<double>& reach) {
    const size_t sides = across.size();
    check(sides % 3 == 0 && sides > 0 && edge.size() == sides && reach.size() == sides && matrix.size() == sides * 16,
          "surface: sizes do not fit each other");
    for (size_t i = 0; i < sides; ++i)
      check(across[i] >= 0 && size_t(across[i]) < sides && across[across[i]] == int32_t(i) && edge[across[i]] == edge[i] &&
                edge[i] >= 0 && size_t(edge[i]) < sides / 2,
            "surface: sides do not match");
    surface_.across = std::move(across);
    surface_.edge = std::move(edge);
    surface_.edges = static_cast<int>(sides / 2);
    metric_.matrix.assign(matrix.data(), matrix.data() + matrix.size());
    metric_.reach = reach;
  }

  std::pair<std::vector<int32_t>, std::vector<uint8_t>> path(const std::vector<int32_t>& weights) const {
    Path found = trace(surface_, sized(weights));
    return {found.entry, found.right};
  }

  nb::tuple curves(int step, int total, size_t limit, int64_t budget) const {
    check((step == 1 || step == 2) && total > 0, "curves: step must be 1 or 2, the total positive");
    std::vector<int32_t> found;
    bool all = false;
    {
      nb::gil_scoped_release free;
      all = statepool::topology::curves(surface_, step, total, limit, budget, found);
    }
    std::vector<std::vector<int32_t>> rows;
    for (size_t i = 0; i < found.size(); i += surface_.edges)
      rows.emplace_back(found.begin() + i, found.begin() + i + surface_.edges);
    return nb::make_tuple(rows, all);
  }

  Geodesic walk(const std::vector<int32_t>& entry, const std::vector<uint8_t>& right) const {
    check(entry.size() == right.size() && !entry.empty(), "path: must have a turn for every side");
    for (const int32_t side : entry) check(side >= 0 && size_t(side) < surface_.across.size(), "path: no such side");
    nb::gil_scoped_release free;
    return geodesic(surface_, metric_, {entry, right});
  }

  std::vector<int32_t> weights(const Geodesic& curve) const {
    std::vector<int32_t> count(surface_.edges, 0);
    for (const int32_t side : curve.entry) ++count[surface_.edge[side]];
    return count;
  }

  int distance(const Geodesic& one, const Geodesic& two) const { return crossings(one, two, surface_.triangles()); }

 private:
  const std::vector<int32_t>& sized(const std::vector<int32_t>& weights) const {
    check(static_cast<int>(weights.size()) == surface_.edges, "weights: must have one number per edge of the boundary");
    int64_t sum = 0;
    for (int side = 0; side < static_cast<int>(surface_.edge.size()); side += 3) {
      const int a = weights[surface_.edge[side]], b = weights[surface_.edge[side + 1]], c = weights[surface_.edge[side + 2]];
      check(a >= 0 && b >= 0 && c >= 0 && a <= b + c && b <= a + c && c <= a + b && (a + b + c) % 2 == 0,
            "weights: no normal curve has them");
      sum += a + b + c;
    }
    check(sum < (int64_t{1} << 24), "weights: too large");
    return weights;
  }

  Surface surface_;
  Metric metric_;
};

}  // namespace

NB_MODULE(_topology, m) {
  m.def("attach", &attach_codes, "gluing"_a, "curve"_a);
  m.def("reduce", &reduce, "gluing"_a, "seed"_a, "ups"_a, "patience"_a);
  m.def("apply", &apply, "gluing"_a, "kind"_a, "tet"_a, "place"_a);
  m.def("collapse", &drill, "gluing"_a, "tet"_a, "edge"_a);
  m.def("skeleton", &skeleton, "gluing"_a);
  nb::class_<Geodesic>(m, "Geodesic")
      .def_ro("entry", &Geodesic::entry)
      .def_ro("exit", &Geodesic::exit)
      .def_ro("inward", &Geodesic::in)
      .def_ro("outward", &Geodesic::out)
      .def_ro("sure", &Geodesic::sure)
      .def_static("of", [](std::vector<int32_t> entry, std::vector<int32_t> exit, std::vector<double> in, std::vector<double> out) {
        return Geodesic{std::move(entry), std::move(exit), std::move(in), std::move(out), true};
      });
  nb::class_<Model>(m, "Surface")
      .def(nb::init<std::vector<int32_t>, std::vector<int32_t>, const Table&, const std::vector<double>&>(), "across"_a,
           "edge"_a, "matrix"_a, "reach"_a)
      .def("path", &Model::path, "weights"_a)
      .def("curves", &Model::curves, "step"_a, "total"_a, "limit"_a, "budget"_a)
      .def("geodesic", &Model::walk, "entry"_a, "right"_a)
      .def("weights", &Model::weights, "geodesic"_a)
      .def("distance", &Model::distance, "one"_a, "two"_a);
}
