// The Python module of the sandbox room: system calls that Python 3.11 does not have, and processes that wait without it.
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "frozen.h"
#include "pages.h"
#include "syscalls.h"
#include "wire.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::sandbox;

namespace {

[[noreturn]] void throw_errno(const char* what) {
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
  throw nb::python_error();
}

void mount_at(const char* source, const char* target, const char* kind, unsigned long flags, const char* data) {
  if (mount(source, target, *kind ? kind : nullptr, flags, *data ? data : nullptr)) throw_errno(target);
}

int open_inside(int root, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve) {
  open_how how;
  memset(&how, 0, sizeof how);
  how.flags = flags | O_CLOEXEC;
  how.mode = mode;
  how.resolve = resolve;
  const long fd = syscall(SYS_openat2, root, path, &how, sizeof how);
  if (fd < 0) throw_errno(path);
  return int(fd);
}

std::vector<sock_filter> instructions(nb::bytes program) {
  if (program.size() % sizeof(sock_filter)) throw nb::value_error("program: not a whole number of BPF instructions");
  std::vector<sock_filter> made(program.size() / sizeof(sock_filter));
  memcpy(made.data(), program.c_str(), program.size());
  return made;
}

// A process id, or what a child is for: the bytes of a message and its descriptors.
nb::object told(const Forked& forked) {
  if (forked.pid < 0) throw_errno("fork");
  if (!forked.order) return nb::int_(forked.pid);
  return nb::make_tuple(nb::bytes(forked.order->body.data(), forked.order->body.size()), forked.order->fds);
}

constexpr uint32_t kMostBytes = 64 << 20;  // of what a kernel is told, cells among it

constexpr int kIdle = 1000;  // milliseconds

// The next message on `line` and its descriptors; None once the other end has gone. Python's signal handlers run while it waits. Where
// it waits long, memory goes back to the template if `used` says that there may be some.
nb::object heard(int line, bool used) {
  Order order;
  bool whole = false;
  for (int error = EINTR; error == EINTR;) {
    {
      nb::gil_scoped_release released;
      pollfd wanted{line, POLLIN, 0};
      int ready = poll(&wanted, 1, used ? kIdle : -1);
      if (!ready) {
        give_back();
        ready = poll(&wanted, 1, -1);
      }
      error = ready < 0 ? errno : 0;
      whole = !error && receive(line, order, kMostBytes);
    }
    if (error == EINTR && PyErr_CheckSignals()) throw nb::python_error();
  }
  if (!whole) return nb::none();
  return nb::make_tuple(nb::bytes(order.body.data(), order.body.size()), order.fds);
}

void tell_bytes(int line, nb::bytes text, const std::vector<int>& fds) {
  const std::string_view body(text.c_str(), text.size());
  nb::gil_scoped_release released;
  tell(line, body, fds);
}

// Show a file in the memory of `space`, from its first multiple of 2 MiB on; answers where that is.
size_t show_file(nb::object space, int fd, size_t length, int kind) {
  Py_buffer view;
  if (PyObject_GetBuffer(space.ptr(), &view, PyBUF_WRITABLE)) throw nb::python_error();
  const auto address = reinterpret_cast<uintptr_t>(view.buf), begin = -address % (2u << 20);
  PyBuffer_Release(&view);
  void* place = reinterpret_cast<void*>(address + begin);
  if (mmap(place, length, PROT_READ | PROT_WRITE, kind | MAP_FIXED, fd, 0) == MAP_FAILED) throw_errno("mmap");
  return begin;
}

}  // namespace

NB_MODULE(_sandbox, m) {
  m.def("fill_holes", &fill_holes);
  m.def("seal", &seal);
  m.def("written", &written);
  m.def("expect_writes", &expect_writes, "stretches"_a);
  m.def("receive", &heard, "line"_a, "used"_a);
  m.def("tell", &tell_bytes, "line"_a, "text"_a, "fds"_a = nb::list());
  m.def("fork", [] {
    const pid_t pid = fork();
    if (pid < 0) throw_errno("fork");
    return pid;
  });
  m.def("hold", [](int line) { return told(hold(line)); }, "line"_a);
  m.def("sow", [](int line, nb::bytes program) { sow(line, instructions(program)); }, "line"_a, "program"_a);
  m.def("unshare", [](int flags) {
    if (unshare(flags)) throw_errno("unshare");
  });
  m.def("mount", &mount_at, "source"_a, "target"_a, "kind"_a = "", "flags"_a = 0, "data"_a = "");
  m.def("prctl", [](int option, unsigned long value) {
    const int answer = prctl(option, value, 0, 0, 0);
    if (answer < 0) throw_errno("prctl");
    return answer;
  });
  m.def("show_file", &show_file, "space"_a, "fd"_a, "length"_a, "kind"_a);
  m.def("open_inside", &open_inside, "root"_a, "path"_a, "flags"_a, "mode"_a, "resolve"_a);
  m.def("syscalls", [] {
    nb::dict made;
    for (const Named& item : kSyscalls) made[item.name] = item.number;
    return made;
  });
}
