#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "roots.h"

namespace statepool::sandbox {
namespace {

constexpr int kStandard = 3;
constexpr int kAbove = 64;  // above the targets, so that no target overwrites a source

struct Failure {
  const char* step;
  int error;
};

// Runs between vfork and exec: it may touch nothing of the parent but `failure`.
[[noreturn]] void become(const Start& want, volatile Failure* failure) {
  const char* step = nullptr;
  setsid();
  for (int i = 0; i < kStandard && !step; ++i)
    if (dup2(want.fds[i], kAbove + i) < 0) step = "dup";
  for (int i = 0; i < kStandard && !step; ++i)
    if (dup2(kAbove + i, i) < 0) step = "dup2";
  if (!step && want.terminal && ioctl(0, TIOCSCTTY, 0)) step = "TIOCSCTTY";
  if (!step) step = confine(*want.confinement, want.root_fd);
  if (!step) reset_signals();
  if (!step && syscall(SYS_close_range, unsigned(kStandard), ~0u, 0)) step = "close_range";
  if (!step && chdir(want.cwd)) step = "cwd";
  if (!step) {
    execvpe(want.argv[0], want.argv.data(), want.env.data());
    step = "exec";
  }
  failure->step = step;
  failure->error = errno;
  _exit(127);
}

}  // namespace

pid_t start(const Start& want) {
  volatile Failure failure{nullptr, 0};  // the compiler sees no way from the child's writes to the parent's reads
  uint64_t all = ~uint64_t(0), before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, 8);  // a handler of the parent must not run in the child
  const pid_t pid = vfork();
  if (pid == 0) become(want, &failure);
  const int error = errno;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, 8);
  errno = error;
  if (pid < 0) fail("vfork");
  if (const char* step = failure.step) {
    errno = failure.error;
    fail(strcmp(step, "exec") ? step : want.argv[0]);
  }
  return pid;
}

}  // namespace statepool::sandbox
