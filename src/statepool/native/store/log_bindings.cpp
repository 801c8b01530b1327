// The log and its disks for tests and for `statepool store fsck`; the store itself does not go through here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "crash_log.h"
#include "crc32c.h"
#include "log.h"
#include "posix_disk.h"
#include "python_view.h"
#include "sim_disk.h"

namespace nb = nanobind;
using namespace statepool::store;

namespace {

nb::bytes to_bytes(const void* data, size_t size) { return nb::bytes(static_cast<const char*>(data), size); }

// A simulated disk with its history.
struct RecordedDisk {
  explicit RecordedDisk(Image image) : start(std::move(image)), disk(start, events) {}
  static std::unique_ptr<RecordedDisk> of(const nb::dict& files) {
    Image image;
    for (const auto& [name, bytes] : files) {
      const auto content = nb::cast<nb::bytes>(bytes);
      const auto* from = static_cast<const std::byte*>(content.data());
      image.own(nb::cast<std::string>(name)).assign(from, from + content.size());
    }
    return std::make_unique<RecordedDisk>(std::move(image));
  }
  static nb::dict named(const Image& image) {
    nb::dict out;
    for (const auto& [name, bytes] : image.files()) out[name.c_str()] = to_bytes(bytes->data(), bytes->size());
    return out;
  }
  nb::dict now() const {
    Image all = start;
    for (const auto& e : events) SimDisk::apply(e, all);
    return named(all);
  }
  PowerCut cut(size_t point) const {
    PowerCut found(start, events);
    while (found.point() < point && found.next()) {
    }
    return found;
  }
  nb::dict crash(size_t point, const std::vector<size_t>& kept, uint64_t variant) const {
    const auto keep = [&](size_t s) { return std::find(kept.begin(), kept.end(), s) != kept.end(); };
    return named(cut(point).image(keep, variant));
  }
  nb::list history() const {
    static constexpr const char* kNames[] = {"write", "write_later", "sync", "create", "rename", "remove"};
    nb::list out;
    for (const auto& e : events) out.append(nb::make_tuple(kNames[static_cast<int>(e.kind)], e.name, e.to, e.offset, e.size));
    return out;
  }

  Image start;
  std::vector<SimDisk::Event> events;
  SimDisk disk;
};

Disk& disk_of(nb::handle h) {
  if (nb::isinstance<RecordedDisk>(h)) return nb::cast<RecordedDisk&>(h).disk;
  return nb::cast<PosixDisk&>(h);
}

nb::bytes encode(uint16_t type, const nb::bytes& body, uint16_t flags, uint32_t structure, uint32_t client,
                 uint64_t client_seq, uint32_t lock_epoch) {
  if (body.size() > kMaxBody)
    throw StoreError(Fault::invalid, "body: " + std::to_string(body.size()) + " bytes, the limit is 17 MiB");
  const RecordHeader header{static_cast<uint32_t>(body.size()), type, flags, structure, client, client_seq, lock_epoch, 0};
  std::string out(sizeof(header) + round_up(body.size(), 8), '\0');
  store_as(out.data(), header);
  std::memcpy(out.data() + sizeof(header), body.data(), body.size());
  return to_bytes(out.data(), out.size());
}

nb::tuple decode(const nb::bytes& record) {
  if (record_size(record.data(), record.size()) == 0)
    throw StoreError(Fault::corrupt, "record: it leaves the " + std::to_string(record.size()) + " bytes there are");
  const auto h = load_as<RecordHeader>(record.data());
  const char* body = static_cast<const char*>(record.data()) + sizeof(h);
  return nb::make_tuple(h.type, to_bytes(body, h.length), h.flags, h.structure, h.client, h.client_seq, h.lock_epoch);
}

void append(Log& log, const nb::list& records) {
  FrameBuilder frame;
  for (const nb::handle item : records) {
    const auto record = nb::cast<nb::bytes>(item);
    if (record_size(record.data(), record.size()) != record.size())
      throw StoreError(Fault::invalid, "record: its length is not that of the bytes given");
    std::string numbered(static_cast<const char*>(record.data()), record.size());
    auto header = load_as<RecordHeader>(numbered.data());
    header.lsn_low = static_cast<uint32_t>(log.last_lsn() + 1 + frame.records());
    store_as(numbered.data(), header);
    frame.add(reinterpret_cast<const std::byte*>(numbered.data()), numbered.size());
  }
  nb::gil_scoped_release released;
  log.append(frame);
}

std::unique_ptr<Log> open_log(nb::handle disk, const Superblock& super, uint64_t from, const nb::callable& visit) {
  return Log::open(disk_of(disk), super, from, [&](const std::byte* record, uint64_t lsn) {
    visit(lsn, to_bytes(record, record_size(record, ~uint64_t{0})));
  });
}

}  // namespace

void bind_log(nb::module_& m) {
  const auto crc = [](uint32_t (*function)(const void*, size_t, uint32_t)) {
    return [function](nb::handle data, uint32_t before) {
      const Bytes bytes = view_of(data);
      return function(bytes.data(), bytes.size(), before);
    };
  };
  m.def("crc32c", crc(&crc32c), nb::arg("data"), nb::arg("before") = 0);
  m.def("crc32c_table", crc(&crc32c_table), nb::arg("data"), nb::arg("before") = 0);
  m.def("encode_record", &encode, nb::arg("type"), nb::arg("body"), nb::arg("flags") = 0, nb::arg("structure") = 0,
        nb::arg("client") = 0, nb::arg("client_seq") = 0, nb::arg("lock_epoch") = 0);
  m.def("decode_record", &decode, nb::arg("record"));
  m.def("crash_log", &crash_log, nb::arg("seed"), nb::arg("steps"), nb::call_guard<nb::gil_scoped_release>(),
        "Cuts the power to a log at every point of a drawn history; see crash_log.h.");

  nb::class_<PosixDisk>(m, "PosixDisk")
      .def(nb::init<std::string, bool>(), nb::arg("folder"), nb::arg("create"))
      .def_prop_ro("direct", &PosixDisk::direct);
  nb::class_<RecordedDisk>(m, "SimDisk")
      .def(nb::new_(&RecordedDisk::of), nb::arg("files"))
      .def_prop_ro("files", &RecordedDisk::now)
      .def_prop_ro("history", &RecordedDisk::history)
      .def("fail_at", [](RecordedDisk& d, uint64_t number, bool full) { d.disk.fail_at(number, full ? Fault::full : Fault::unknown, ~uint64_t{0}, false); },
           nb::arg("number"), nb::arg("full"))
      .def("outstanding", [](const RecordedDisk& d, size_t point) { return d.cut(point).sectors(); }, nb::arg("point"))
      .def("crash", &RecordedDisk::crash, nb::arg("point"), nb::arg("kept"), nb::arg("variant") = 0);

  nb::class_<Superblock>(m, "Superblock")
      .def("__init__", [](Superblock* s, uint64_t segment_size) {
             new (s) Superblock{};
             s->segment_size = segment_size;
             std::memset(s->uuid, 7, sizeof(s->uuid));
           }, nb::arg("segment_size"))
      .def_prop_rw("uuid", [](const Superblock& s) { return to_bytes(s.uuid, sizeof(s.uuid)); },
                   [](Superblock& s, const nb::bytes& uuid) { std::memcpy(s.uuid, uuid.data(), std::min(uuid.size(), sizeof(s.uuid))); })
      .def_ro("generation", &Superblock::generation)
      .def_rw("epoch", &Superblock::epoch)
      .def_rw("checkpoint_lsn", &Superblock::checkpoint_lsn)
      .def_rw("checkpoint_id", &Superblock::checkpoint_id)
      .def_rw("first_segment", &Superblock::first_segment)
      .def_rw("segment_size", &Superblock::segment_size)
      .def_rw("capacity", &Superblock::capacity)
      .def_rw("heap_nonce", &Superblock::heap_nonce)
      .def_rw("clean", &Superblock::clean)
      .def("create", [](Superblock& s, nb::handle disk) { create_superblock(disk_of(disk), s); }, nb::arg("disk"))
      .def("write", [](Superblock& s, nb::handle disk) { write_superblock(disk_of(disk), s); }, nb::arg("disk"))
      .def("read", [](Superblock& s, nb::handle disk) { return read_superblock(disk_of(disk), s); }, nb::arg("disk"));

  nb::class_<Log>(m, "Log")
      .def_static("create", [](nb::handle disk, const Superblock& super) { return Log::create(disk_of(disk), super); },
                  nb::arg("disk"), nb::arg("super"), nb::keep_alive<0, 1>(), nb::keep_alive<0, 2>())
      .def_static("open", &open_log, nb::arg("disk"), nb::arg("super"), nb::arg("from_lsn"), nb::arg("visit"),
                  nb::keep_alive<0, 1>(), nb::keep_alive<0, 2>())
      .def("append", &append, nb::arg("records"))
      .def_prop_ro("last_lsn", &Log::last_lsn)
      .def("bytes_since", &Log::bytes_since, nb::arg("lsn"))
      .def("segment_of", &Log::segment_of, nb::arg("lsn"))
      .def("recycle", &Log::recycle, nb::arg("first"), nb::call_guard<nb::gil_scoped_release>());
}
