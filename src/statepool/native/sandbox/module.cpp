// The Python module of the sandbox room: system calls that Python 3.11 does not have, and the spawn path. No policy.
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

#include "confine.h"
#include "frozen.h"
#include "syscalls.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace statepool::sandbox;

namespace {

[[noreturn]] void fail(const char* what) {
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
  throw nb::python_error();
}

void mount_at(const char* source, const char* target, const char* kind, unsigned long flags, const char* data) {
  if (mount(source, target, *kind ? kind : nullptr, flags, *data ? data : nullptr)) fail(target);
}

int open_inside(int root, const char* path, uint64_t flags, uint64_t mode, uint64_t resolve) {
  open_how how;
  memset(&how, 0, sizeof how);
  how.flags = flags | O_CLOEXEC;
  how.mode = mode;
  how.resolve = resolve;
  const long fd = syscall(SYS_openat2, root, path, &how, sizeof how);
  if (fd < 0) fail(path);
  return int(fd);
}

void* close_there(void* fds) {
  const std::unique_ptr<std::vector<int>> owned(static_cast<std::vector<int>*>(fds));
  for (const int fd : *owned) close(fd);
  return nullptr;
}

// The last reference to a file system frees all of it: 0.3 s for 20,000 files. Not in the thread that serves.
void close_later(const std::vector<int>& fds) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  auto* copy = new std::vector<int>(fds);
  if (pthread_create(&thread, &small, close_there, copy)) close_there(copy);
  pthread_attr_destroy(&small);
}

Confinement make_confinement(uint32_t uid, uint32_t gid, nb::bytes program, const std::vector<std::pair<int, uint64_t>>& limits,
                             uint64_t capabilities, bool groups) {
  Confinement made{uid, gid, capabilities, groups, {}, {}};
  if (program.size() % sizeof(sock_filter)) throw nb::value_error("program: not a whole number of BPF instructions");
  made.program.resize(program.size() / sizeof(sock_filter));
  memcpy(made.program.data(), program.c_str(), program.size());
  for (const auto& [resource, value] : limits) made.limits.push_back({resource, value});
  return made;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> made;
  for (std::string& text : texts) made.push_back(text.data());
  made.push_back(nullptr);
  return made;
}

struct Failure {
  const char* step;
  int error;
};

// Runs between vfork and exec: it may touch nothing of the parent but `failure`.
[[noreturn]] void become(const Confinement& want, int root_fd, const char* cwd, char** argv, char** env, const std::vector<int>& fds,
                         bool terminal, volatile Failure* failure) {
  const char* step = nullptr;
  setsid();
  const int first = 64 + int(fds.size());  // above the targets, so that no target overwrites a source
  for (size_t i = 0; i < fds.size() && !step; ++i)
    if (fcntl(fds[i], F_DUPFD, first + int(i)) < 0 || dup2(fds[i], first + int(i)) < 0) step = "dup";
  for (size_t i = 0; i < fds.size() && !step; ++i)
    if (dup2(first + int(i), int(i)) < 0) step = "dup2";
  if (!step && terminal && ioctl(0, TIOCSCTTY, 0)) step = "TIOCSCTTY";
  if (!step) step = confine(want, root_fd);
  if (!step) reset_signals();
  if (!step && syscall(SYS_close_range, unsigned(fds.size()), ~0u, 0)) step = "close_range";
  if (!step && chdir(cwd)) step = "cwd";
  if (!step) {
    execvpe(argv[0], argv, env);
    step = "exec";
  }
  failure->step = step;
  failure->error = errno;
  _exit(127);
}

int spawn(const Confinement& want, int root_fd, std::vector<std::string> argv, std::vector<std::string> env, const std::string& cwd,
          const std::vector<int>& fds, bool terminal) {
  std::vector<char*> arguments = pointers(argv), variables = pointers(env);
  volatile Failure failure{nullptr, 0};  // the compiler sees no way from the child's writes to the parent's reads
  uint64_t all = ~uint64_t(0), before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, 8);  // a handler of the parent must not run in the child
  const pid_t pid = vfork();
  if (pid == 0) become(want, root_fd, cwd.c_str(), arguments.data(), variables.data(), fds, terminal, &failure);
  const int error = errno;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, 8);
  errno = error;
  if (pid < 0) fail("vfork");
  if (const char* step = failure.step) {
    errno = failure.error;
    fail(strcmp(step, "exec") ? step : argv[0].c_str());
  }
  return pid;
}

void enter(const Confinement& want, int root_fd) {
  if (const char* step = confine(want, root_fd)) fail(step);
  reset_signals();
}

// Put the private memory of this process into pages of 2 MiB where there are so many beside each other. A fork copies one entry for
// such a page instead of 512, and who writes to a part of it still gets a copy of 4 KiB only. Answers how many pages there are.
int collapse() {
  constexpr uintptr_t kHuge = 2u << 20;
  std::unique_ptr<FILE, int (*)(FILE*)> maps(fopen("/proc/self/maps", "re"), fclose);
  if (!maps) fail("/proc/self/maps");
  std::vector<std::pair<uintptr_t, uintptr_t>> places;
  char line[4352];
  while (fgets(line, sizeof line, maps.get())) {
    uintptr_t begin, end;
    char rights[5], path[16] = "";
    if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %15s", &begin, &end, rights, path) < 3 || strcmp(rights, "rw-p")) continue;
    if (*path && strcmp(path, "[heap]")) continue;
    places.emplace_back((begin + kHuge - 1) & ~(kHuge - 1), end & ~(kHuge - 1));
  }
  int made = 0;
  for (const auto& [begin, end] : places)
    for (uintptr_t at = begin; at < end; at += kHuge)
      if (!madvise(reinterpret_cast<void*>(at), kHuge, 25)) ++made;  // 25: MADV_COLLAPSE; Linux before 6.1 says no, as for empty memory
  return made;
}

// A process id, or what a child is for: the bytes of a message and its descriptors.
nb::object told(const Forked& forked) {
  if (forked.pid < 0) fail("fork");
  if (!forked.order) return nb::int_(forked.pid);
  return nb::make_tuple(nb::bytes(forked.order->body.data(), forked.order->body.size()), forked.order->fds);
}

}  // namespace

NB_MODULE(_sandbox, m) {
  nb::class_<Confinement>(m, "Confinement")
      .def("__init__",
           [](Confinement* self, uint32_t uid, uint32_t gid, nb::bytes program, const std::vector<std::pair<int, uint64_t>>& limits,
              uint64_t capabilities, bool groups) {
             new (self) Confinement(make_confinement(uid, gid, program, limits, capabilities, groups));
           },
           "uid"_a, "gid"_a, "program"_a, "limits"_a, "capabilities"_a = 0, "groups"_a = true);
  m.def("enter", &enter, "confinement"_a, "root_fd"_a);
  m.def("spawn", &spawn, "confinement"_a, "root_fd"_a, "argv"_a, "env"_a, "cwd"_a, "fds"_a, "terminal"_a = false);
  m.def("collapse", &collapse);
  m.def("hold", [](int line, int other) { return told(hold(line, other)); }, "line"_a, "other"_a);
  m.def("sow", [](int line) { return told(sow(line)); }, "line"_a);
  m.def("unshare", [](int flags) {
    if (unshare(flags)) fail("unshare");
  });
  m.def("setns", [](int fd, int kind) {
    if (setns(fd, kind)) fail("setns");
  });
  m.def("mount", &mount_at, "source"_a, "target"_a, "kind"_a = "", "flags"_a = 0, "data"_a = "");
  m.def("umount", [](const char* target, int flags) {
    if (umount2(target, flags)) fail(target);
  });
  m.def("pivot_root", [](const char* fresh, const char* old) {
    if (syscall(SYS_pivot_root, fresh, old)) fail("pivot_root");
  });
  m.def("open_tree", [](const char* path, unsigned flags) {
    const long fd = syscall(SYS_open_tree, AT_FDCWD, path, flags | 1u | O_CLOEXEC);  // 1: OPEN_TREE_CLONE
    if (fd < 0) fail(path);
    return int(fd);
  });
  m.def("move_mount", [](int fd, const char* path) {
    if (syscall(SYS_move_mount, fd, "", AT_FDCWD, path, 4u)) fail(path);  // 4: MOVE_MOUNT_F_EMPTY_PATH
  });
  m.def("prctl", [](int option, unsigned long value) {
    const int answer = prctl(option, value, 0, 0, 0);
    if (answer < 0) fail("prctl");
    return answer;
  });
  m.def("open_inside", &open_inside, "root"_a, "path"_a, "flags"_a, "mode"_a, "resolve"_a);
  m.def("close_later", &close_later, "fds"_a);
  m.def("syscalls", [] {
    nb::dict made;
    for (const Named& item : kSyscalls) made[item.name] = item.number;
    return made;
  });
}
