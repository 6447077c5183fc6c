// The runtime of the simulator: runs compiled kernels, thread by thread.
#include "abi.h"
#include "atomics.h"
#include "builtins.h"
#include "collectives.h"
#include "hooks.h"
#include "isolate.h"
#include "undefined.h"

// Runs a launch in a child process. Buffers and results lie in shared memory.
EXPORT void msl_run(Launch* described) {
  // Not fork(): its handlers would stop the thread pools of the parent's libraries.
  u64 child = call(CALL_CLONE, SIGCHLD);
  if (child == 0) {
    launch = described;
    run_child();
  }
  if (failed(child)) {
    described->fork_error = -(i64)child;
  } else {
    await_child(described, child);
  }
}
