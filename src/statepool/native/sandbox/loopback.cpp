#include "loopback.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "roots.h"

namespace statepool::sandbox {
namespace {

sockaddr_in place(int port) {
  sockaddr_in address;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(uint16_t(port));
  return address;
}

int opened(int kind) {
  const int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  return fd;
}

[[noreturn]] void give_up(int fd, const char* step, int error) {
  close(fd);
  errno = error;
  fail(step);
}

// A file's text, without a stream's buffers: each page that PID 1 writes to is one per sandbox.
void add(std::string& text, const char* path) {
  char part[2048];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  for (ssize_t got; fd >= 0 && (got = read(fd, part, sizeof part)) > 0;) text.append(part, size_t(got));
  if (fd >= 0) close(fd);
}

}  // namespace

void loopback_up() {
  const int any = opened(SOCK_DGRAM);
  ifreq request;
  memset(&request, 0, sizeof request);
  strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  if (ioctl(any, SIOCSIFFLAGS, &request)) give_up(any, "loopback", errno);
  close(any);
}

// By counters, since the lists of TCP walk a table of the whole machine: 5 ms.
bool sockets_left() {
  for (const char* name : {"/proc/net/sockstat", "/proc/net/sockstat6"}) {
    std::string text;
    add(text, name);
    bool counts = false;  // TCP: inuse 0 orphan 0 tw 0 …
    char* rest;
    for (char* word = strtok_r(text.data(), " \n", &rest); word; word = strtok_r(nullptr, " \n", &rest)) {
      if (counts && atol(word)) return true;
      counts = !strcmp(word, "inuse") || !strcmp(word, "tw");
    }
  }
  return false;
}

std::string net_counts() {
  std::string found;
  for (const char* name : {"/proc/net/dev", "/proc/net/snmp", "/proc/net/snmp6"}) add(found, name);
  return found;
}

Listening listen_there(int port) {
  const int server = opened(SOCK_STREAM), yes = 1;
  sockaddr_in address = place(port);
  socklen_t length = sizeof address;
  auto* name = reinterpret_cast<sockaddr*>(&address);
  setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(server, name, length) || listen(server, 64) || getsockname(server, name, &length)) give_up(server, "listen", errno);
  return {server, ntohs(address.sin_port)};
}

int connect_there(int port, int patience) {
  const sockaddr_in address = place(port);
  const int client = opened(SOCK_STREAM | SOCK_NONBLOCK);
  int error = 0;
  if (connect(client, reinterpret_cast<const sockaddr*>(&address), sizeof address)) error = errno;
  if (error == EINPROGRESS) {
    pollfd wanted{client, POLLOUT, 0};
    socklen_t length = sizeof error;
    if (poll(&wanted, 1, patience) <= 0)
      error = ETIMEDOUT;
    else
      getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length);
  }
  if (!error && fcntl(client, F_SETFL, 0)) error = errno;
  if (error) give_up(client, "connect", error);
  return client;
}

}  // namespace statepool::sandbox
