// What operations do to the heap. Everything here is a function of the heap and the operation, for it is replayed.
#include "store.h"
#include "structures/any.h"

namespace statepool::store {
namespace {

// The catalog maps a structure's name to its id, kind and root, a word each.
std::string catalog_entry(uint32_t id, Kind kind, Addr root) {
  const uint64_t words[3] = {id, static_cast<uint64_t>(kind), root};
  return {reinterpret_cast<const char*>(words), sizeof(words)};
}

}  // namespace

// The memory that operations look at is on its way before the first of them waits for it (gather and apply, section 4).
void Store::gather(const Operation* operations, size_t count) const {
  for (const bool items : {false, true})
    for (size_t i = 0; i < count; ++i) {
      const Operation& o = operations[i];
      if ((o.verb != Verb::put && o.verb != Verb::erase) || !table_.live(o.structure)) continue;
      const Structure& s = table_.at(o.structure);
      if (s.kind != Kind::dict) continue;
      const HashTable<Heap> table(*heap_, s.root);
      items ? table.ask_for_item(o.a) : table.ask_for_bucket(o.a);
    }
}

Outcome Store::apply(const Operation& o) {
  HashTable<Heap> catalog(*heap_, heap_->header().catalog);
  Outcome out;
  if (o.verb == Verb::create) {
    // The id comes with the operation, so that a replay gives the same one.
    heap_->change(heap_->header().catalog);
    const auto kind = static_cast<Kind>(o.x);
    out.number = create_structure(*heap_, kind);
    catalog.put(o.a, catalog_entry(o.structure, kind, out.number));
    out.changed = true;
    return out;
  }
  const Structure& s = table_.at(o.structure);
  if (o.verb != Verb::drop) {
    heap_->change(s.root);
    out = apply_operation(*heap_, s.kind, s.root, o);
    with_structure(*heap_, s.kind, s.root, [&](auto& structure) {
      if constexpr (has_versions<std::decay_t<decltype(structure)>>)
        structure.collect(oldest_pinned(o.structure, structure.version()));
    });
    return out;
  }
  // Readers are sent away first. The sequence word goes through the journal like the rest here: it is memory that is
  // released, so nothing may be written there after the commit.
  const Addr root = s.root;
  table_.set_root(o.structure, 0);
  dropping_ = {o.structure, root};
  heap_->store(root + Root::sequence, heap_->load(root + Root::sequence) | 1);
  heap_->change(heap_->header().catalog);
  with_structure(*heap_, s.kind, root, [](auto& structure) { structure.destroy(); });
  catalog.erase(s.name);
  out.changed = true;
  return out;
}

void Store::roll_back() {
  heap_->rollback();
  if (dropping_.second != 0) table_.set_root(dropping_.first, dropping_.second);
  dropping_ = {};
}

// Takes over what a committed operation means for the table of structures.
void Store::adopt(const Operation& o, const Outcome& out) {
  if (o.verb == Verb::create) {
    table_.put(o.structure, std::string(o.a), static_cast<Kind>(o.x), out.number);
    names_[std::string(o.a)] = o.structure;
  } else if (o.verb == Verb::drop) {
    names_.erase(table_.name(o.structure));
    dropping_ = {};
  }
}

uint32_t Store::structure(const std::string& name, Kind kind, bool create) {
  const std::lock_guard<std::mutex> one_at_a_time(creating_);
  {
    const std::lock_guard<std::mutex> lock(writer_);
    if (const auto found = names_.find(name); found != names_.end()) {
      const Kind present = table_.at(found->second).kind;
      if (present != kind)
        throw StoreError(Fault::invalid, "name: '" + name + "' is a " + kind_name(present) + ", not a " + kind_name(kind));
      return found->second;
    }
    if (!create) throw StoreError(Fault::missing, "name: there is no structure '" + name + "'");
    if (name.empty()) throw StoreError(Fault::invalid, "name: it is empty");
  }
  Operation o{Verb::create, table_.size(), name, {}, static_cast<uint64_t>(kind), 0};
  Outcome out;
  commit(&o, 1, &out, Level::inherit);
  return o.structure;
}

void Store::drop(uint32_t id) {
  const Operation o{Verb::drop, id, {}, {}, 0, 0};
  Outcome out;
  commit(&o, 1, &out, Level::inherit);
}

}  // namespace statepool::store
