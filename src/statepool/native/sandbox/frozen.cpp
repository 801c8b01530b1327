#include "frozen.h"

#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace statepool::sandbox {
namespace {

constexpr size_t kMostFds = 32;
constexpr uint32_t kMostBytes = 1 << 20;
constexpr int kLine = 3;  // descriptor of the socket in a process that waits

void nothing(int) {}

void take(msghdr& head, std::vector<int>& fds) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&head); part; part = CMSG_NXTHDR(&head, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      fds.push_back(fd);
    }
  }
}

bool read_bytes(int line, char* to, size_t length, std::vector<int>& fds) {
  while (length) {
    iovec piece{to, length};
    alignas(cmsghdr) char room[CMSG_SPACE(kMostFds * sizeof(int))];
    msghdr head;
    memset(&head, 0, sizeof head);
    head.msg_iov = &piece;
    head.msg_iovlen = 1;
    head.msg_control = room;
    head.msg_controllen = sizeof room;
    const ssize_t got = recvmsg(line, &head, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    take(head, fds);
    to += got;
    length -= size_t(got);
  }
  return true;
}

bool receive(int line, Order& order) {
  unsigned char head[4];
  order.fds.clear();
  if (!read_bytes(line, reinterpret_cast<char*>(head), sizeof head, order.fds)) return false;
  const uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | uint32_t(head[3]) << 24;
  if (length > kMostBytes) return false;
  order.body.resize(length);
  return read_bytes(line, order.body.data(), length, order.fds);
}

void tell(int line, const char* text) {
  const uint32_t length = uint32_t(strlen(text));
  char whole[256];
  const unsigned char head[4] = {static_cast<unsigned char>(length), static_cast<unsigned char>(length >> 8), 0, 0};
  memcpy(whole, head, 4);
  memcpy(whole + 4, text, length);
  for (size_t done = 0; done < length + 4;) {
    const ssize_t sent = send(line, whole + done, length + 4 - done, MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) _exit(0);  // nobody is left to hear it
    if (sent > 0) done += size_t(sent);
  }
}

void tell_pid(int line, const char* what, long pid) {
  char text[96];
  snprintf(text, sizeof text, "{\"op\":\"%s\",\"pid\":%ld}", what, pid);
  tell(line, text);
}

void tell_failure(int line, const char* step) {
  char text[128];
  snprintf(text, sizeof text, "{\"op\":\"failed\",\"step\":\"%s\",\"errno\":%d}", step, errno);
  tell(line, text);
}

void forget(std::vector<int>& fds) {
  for (const int fd : fds) close(fd);
  fds.clear();
}

bool is(const Order& order, const char* name) {
  char start[32];
  snprintf(start, sizeof start, "{\"op\":\"%s\"", name);
  return order.body.compare(0, strlen(start), start) == 0;
}

bool join(const Order& order) {
  for (const int fd : order.fds)
    if (setns(fd, 0)) return false;
  return true;
}

// End all processes of the namespace but its first and this one; whether one is left that is no child of this one.
bool kill_others() {
  while (kill(-1, SIGKILL) == 0)  // spares the first process, and its caller
    if (waitpid(-1, nullptr, 0) < 0 && errno == ECHILD) return kill(-1, SIGKILL) == 0;
  return false;
}

void reap(int line) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    char text[96];
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    snprintf(text, sizeof text, "{\"op\":\"exit\",\"pid\":%ld,\"code\":%d}", long(pid), code);
    tell(line, text);
  }
}

void handle(int number, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  sigaction(number, &action, nullptr);
}

// Wait until `line` has something; meanwhile children that end are reaped.
void wait_readable(int line, const sigset_t& open_mask, bool report) {
  pollfd wanted{line, POLLIN, 0};
  while (ppoll(&wanted, 1, nullptr, &open_mask) < 0)
    if (report) reap(line);
}

// Answers in a child only. With `report`, ends of children are told.
Order wait_frozen(int line, bool report) {
  // SIGCHLD comes in only while the process waits, so that no end of a child is missed between two waits.
  sigset_t child, before, open_mask;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, &before);
  open_mask = before;
  sigdelset(&open_mask, SIGCHLD);
  struct sigaction theirs;
  sigaction(SIGCHLD, nullptr, &theirs);
  handle(SIGCHLD, report ? nothing : SIG_IGN);
  Order order;
  while (true) {
    wait_readable(line, open_mask, report);
    if (!receive(line, order)) _exit(0);
    if (is(order, "kill")) {
      tell(line, kill_others() ? "{\"op\":\"killed\",\"others\":true}" : "{\"op\":\"killed\",\"others\":false}");
    } else if (is(order, "join")) {
      if (join(order))
        tell(line, "{\"op\":\"joined\"}");
      else
        tell_failure(line, "setns");
    } else {
      const pid_t pid = fork();
      if (pid == 0) {
        PyOS_AfterFork_Child();
        sigaction(SIGCHLD, &theirs, nullptr);
        sigprocmask(SIG_SETMASK, &before, nullptr);
        return order;
      }
      if (pid < 0)
        tell_failure(line, "fork");
      else
        tell_pid(line, "grown", pid);
    }
    forget(order.fds);
    if (report) reap(line);
  }
}

// Fork without what Python does in a child: that is done in the children of the child, when they are to run Python.
pid_t fork_still() {
  PyOS_BeforeFork();
  const pid_t pid = fork();
  const int error = errno;
  if (pid) PyOS_AfterFork_Parent();
  errno = error;
  return pid;
}

// Standard descriptors from `first` on, and the socket at its place.
void settle(int first, int line) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = first; fd < kLine; ++fd) dup2(null, fd);
  close(null);
  if (line == kLine) return;
  dup2(line, kLine);
  close(line);
}

// In the child that becomes a stem: join cgroups and namespaces, and wait.
Order become_stem(const std::vector<int>& fds) {
  handle(SIGCHLD, nothing);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) handle(number, SIG_IGN);
  for (size_t i = 1; i < fds.size(); ++i)
    if (write(fds[i], "0", 1) != 1) {
      tell_failure(fds[0], "cgroup");
      _exit(1);
    }
  settle(0, fds[0]);
  syscall(SYS_close_range, unsigned(kLine + 1), ~0u, 0);
  Order spaces;
  if (!receive(kLine, spaces)) _exit(0);
  if (!join(spaces)) {
    tell_failure(kLine, "setns");
    _exit(1);
  }
  forget(spaces.fds);
  const pid_t pid = fork();  // a process enters a PID namespace by its children only
  if (pid) {
    if (pid < 0)
      tell_failure(kLine, "fork");
    else
      tell_pid(kLine, "planted", pid);
    _exit(0);
  }
  setsid();
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  tell_pid(kLine, "waits", getpid());
  return wait_frozen(kLine, true);
}

}  // namespace

Forked hold(int line, int other) {
  const pid_t pid = fork_still();
  if (pid) return {pid, std::nullopt};
  close(other);
  settle(1, line);
  return {0, wait_frozen(kLine, false)};
}

Forked sow(int line) {
  PyOS_BeforeFork();
  handle(SIGCHLD, SIG_IGN);
  Order order;
  while (receive(line, order)) {
    const pid_t pid = fork();
    if (pid == 0) return {0, become_stem(order.fds)};
    if (pid < 0) tell_failure(order.fds.at(0), "fork");
    forget(order.fds);
  }
  _exit(0);
}

}  // namespace statepool::sandbox
