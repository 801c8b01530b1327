// What Python calls of the store's core, for its owner and for readers.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "errors.h"
#include "view.h"

namespace statepool::store {

namespace nb = nanobind;

// Of a bytes object, which the caller keeps alive.
inline Bytes view_of(nb::handle b) {
  if (!PyBytes_Check(b.ptr()))
    throw StoreError(Fault::invalid, std::string("expected bytes, got ") + nb::type_name(b.type()).c_str() +
                                         "; encode it, or name a codec (str, msgpack, json)");
  return {PyBytes_AsString(b.ptr()), static_cast<size_t>(PyBytes_Size(b.ptr()))};
}
inline nb::bytes to_bytes(const std::string& s) { return nb::bytes(s.data(), s.size()); }

// Reading. Waits release the GIL; everything else is too short for that to pay.
class PyView {
 public:
  virtual ~PyView() = default;

  nb::object get(uint32_t id, nb::handle key, const nb::object& otherwise) const {
    thread_local std::string value;
    uint64_t lsn = 0;
    const bool found = view().get(id, view_of(key), value, lsn);
    see(lsn);
    return found ? nb::object(to_bytes(value)) : otherwise;
  }

  nb::list get_many(uint32_t id, const nb::sequence& keys) const {
    nb::list out;
    thread_local std::string value;
    uint64_t last = 0, lsn = 0;
    for (const nb::handle key : keys) {
      const bool found = view().get(id, view_of(key), value, lsn);
      last = std::max(last, lsn);
      if (found) out.append(to_bytes(value));
      else out.append(nb::none());
    }
    see(last);
    return out;
  }

  // (key, value, lsn) of up to `limit` entries.
  nb::list range(uint32_t id, const Range& range, size_t limit) const {
    std::vector<Entry> entries;
    view().scan(id, range, limit, entries);
    see(view().last_change(id));
    return listed(entries);
  }

  nb::tuple scan(uint32_t id, uint64_t cursor) const {
    std::vector<Entry> entries;
    const uint64_t next = view().scan(id, cursor, entries);
    see(view().last_change(id));
    return nb::make_tuple(next, listed(entries));
  }

  nb::list peek(uint32_t id, uint64_t start, size_t limit) const {
    std::vector<std::pair<uint64_t, std::string>> found;
    view().peek(id, start, limit, found);
    see(view().last_change(id));
    nb::list out;
    for (const auto& [number, value] : found) out.append(nb::make_tuple(number, to_bytes(value)));
    return out;
  }

  // (number, attempts, value) of items that were taken too often.
  nb::list dead(uint32_t id, size_t limit) const {
    std::vector<Taken> found;
    view().dead(id, limit, found);
    see(view().last_change(id));
    nb::list out;
    for (const Taken& t : found) out.append(nb::make_tuple(t.sequence, t.attempts, to_bytes(t.value)));
    return out;
  }

  static nb::list listed(const std::vector<Entry>& entries) {
    nb::list out;
    for (const Entry& e : entries) out.append(nb::make_tuple(to_bytes(e.key), to_bytes(e.value), e.lsn));
    return out;
  }

  nb::tuple lookup(uint32_t id, nb::handle key) const {
    std::string value;
    uint64_t lsn = 0;
    const bool found = view().get(id, view_of(key), value, lsn);
    see(lsn);
    return nb::make_tuple(found ? nb::object(to_bytes(value)) : nb::none(), found ? lsn : 0);
  }

  uint64_t size(uint32_t id) const {
    const uint64_t found = view().size(id);
    see(view().last_change(id));
    return found;
  }
  uint64_t last_change(uint32_t id) const { return view().last_change(id); }
  uint64_t retries() const { return view().retries(); }
  uint64_t applied_lsn() const { return view().applied_lsn(); }
  uint64_t durable_lsn() const { return view().durable_lsn(); }

  nb::list structures() const {
    nb::list out;
    const Table& table = view().structures();
    for (uint32_t id = 0; id < table.size(); ++id)
      if (table.live(id)) out.append(nb::make_tuple(table.at(id).name, id, static_cast<int>(table.at(id).kind)));
    return out;
  }

 protected:
  virtual View& view() const = 0;
  virtual void see(uint64_t lsn) const = 0;  // returns when lsn may be told: see Store::must_wait
};

}  // namespace statepool::store
