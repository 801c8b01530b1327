// The network of a slot: a loopback, and nothing else. Errors are `Failed`.
#pragma once

#include <string>

namespace statepool::sandbox {

void loopback_up();

// Whether the network namespace remembers a socket, such as a port in TIME_WAIT.
bool sockets_left();

// What the network namespace has counted, packets that led nowhere included.
std::string net_counts();

struct Listening {
  int fd, port;
};

// A listening socket on this port, or on any for 0.
Listening listen_there(int port);

// A connection to this port, made within `patience` milliseconds.
int connect_there(int port, int patience);

}  // namespace statepool::sandbox
