#include "cli/cli.h"

int main(int argc, char** argv) {
  return fvmm::cli::run(argc, argv);
}
