// A command of the tenant: started by vfork, confined before its first instruction.
#pragma once

#include <sys/types.h>

#include <vector>

#include "confine.h"

namespace statepool::sandbox {

struct Start {
  const Confinement* confinement;
  int root_fd;
  const char* cwd;
  std::vector<char*> argv, env;  // each ends with nullptr
  const int* fds;                // input, output, error
  bool terminal;                 // whether these are a terminal, which becomes its own
};

// Process id of the command. Throws `Failed` with the step, "cwd" among them, or the program that could not be run.
pid_t start(const Start& want);

}  // namespace statepool::sandbox
