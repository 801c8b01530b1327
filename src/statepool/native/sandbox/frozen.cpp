#include "frozen.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"
#include "pages.h"

namespace statepool::sandbox {
namespace {

void handle(int number, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  sigaction(number, &action, nullptr);
}

// Standard descriptors from `first` on, and the socket at its place.
void settle(int first, int line) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = first; fd < kControl; ++fd) dup2(null, fd);
  close(null);
  if (line == kControl) return;
  dup2(line, kControl);
  close(line);
}

// Answers in a child only.
Order wait_frozen() {
  struct sigaction theirs;
  sigaction(SIGCHLD, nullptr, &theirs);
  handle(SIGCHLD, SIG_IGN);
  Order order;
  while (true) {
    if (!receive(kControl, order)) _exit(0);
    const pid_t pid = fork();
    if (pid == 0) {
      sigaction(SIGCHLD, &theirs, nullptr);
      return order;
    }
    if (pid < 0)
      tell_failure(kControl, "fork", errno);
    else
      tell(kControl, "{\"op\":\"grown\",\"pid\":" + std::to_string(pid) + "}");
    forget(order.fds);
  }
}

void put_file(const char* path, const std::string& text) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text.data(), text.size()) != ssize_t(text.size())) fail(path);
  close(fd);
}

struct Wanted {
  Plan plan;
  Room room;
};

Wanted read(const Order& order) {
  std::vector<std::string> fields(1);
  for (const char letter : order.body)
    if (letter)
      fields.back() += letter;
    else
      fields.emplace_back();
  const auto layers = fields.begin() + 6, sources = layers + atol(fields.at(5).c_str());
  return {{fields[0] == "1", fields[3], fields[4], {layers, sources}, {sources, fields.end()}},
          {strtoull(fields[1].c_str(), nullptr, 10), strtoull(fields[2].c_str(), nullptr, 10)}};
}

// In the process between: enter cgroups and namespaces; its child is PID 1 of them, and adopted by the process that waits. Returns in
// PID 1, with its control socket in place and nothing else open.
void enter(const Order& order, bool userns) {
  const int control = order.fds.at(0);
  for (size_t i = 1; i < order.fds.size(); ++i)
    if (write(order.fds[i], "0", 1) != 1) fail("cgroup.procs");
  if (userns) {
    const std::string user = std::to_string(geteuid()), group = std::to_string(getegid());
    if (unshare(CLONE_NEWUSER)) fail("unshare");
    put_file("/proc/self/setgroups", "deny");
    put_file("/proc/self/uid_map", "1000 " + user + " 1");
    put_file("/proc/self/gid_map", "1000 " + group + " 1");
  }
  if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_NEWPID)) fail("unshare");
  const pid_t pid = fork();
  if (pid < 0) fail("fork");
  if (pid) {
    tell(control, "{\"op\":\"born\",\"pid\":" + std::to_string(pid) + "}");
    _exit(0);
  }
  settle(0, control);
  syscall(SYS_close_range, unsigned(kControl + 1), ~0u, 0);
}

void become_slot(const Order& order, const std::vector<sock_filter>& program) {
  const Wanted wanted = read(order);
  try {
    enter(order, wanted.plan.userns);
  } catch (const Failed& failed) {
    tell(order.fds.at(0), "{\"op\":\"failed\",\"error\":" + quoted(failed.what) + "}");
    _exit(1);
  }
  serve_slot(wanted.plan, wanted.room, program);
}

}  // namespace

Forked hold(int line) {
  const pid_t pid = fork();
  if (pid) return {pid, std::nullopt};
  settle(1, line);
  return {0, wait_frozen()};
}

void sow(int line, const std::vector<sock_filter>& program) {
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  handle(SIGCHLD, SIG_IGN);  // slots are its children once the process between has ended: nobody waits for them
  seal();
  Order order;
  while (receive(line, order)) {
    const pid_t pid = fork();
    if (pid == 0) {
      become_slot(order, program);
      return;
    }
    if (pid < 0) tell_failure(order.fds.at(0), "fork", errno);
    forget(order.fds);
  }
  _exit(0);
}

}  // namespace statepool::sandbox
