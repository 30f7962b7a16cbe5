// The one include of CLI11 (header only).
#pragma once

#include <CLI/CLI.hpp>
