# Flags shared by every target of the project.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS ON)  # FVMM_TRY is a GNU statement expression
set(CMAKE_C_STANDARD 17)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

option(FVMM_WERROR "Treat warnings as errors" ON)
set(FVMM_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize takes them: address,undefined or thread")

option(FVMM_FUZZ "Build the targets of tests/fuzz with clang's libFuzzer (tools/fuzz does)" OFF)

# Line tables are what a backtrace and perf need; full debug information triples the time to build. Instrumented code is
# not optimized further than a debugger likes: -O2 takes GCC 12 up to 74 s a file with the two sanitizers, -Og 21 s.
if(FVMM_SANITIZE)
  set(FVMM_OPTIMIZE "-Og")
else()
  set(FVMM_OPTIMIZE "-O2")
endif()
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "${FVMM_OPTIMIZE} -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "${FVMM_OPTIMIZE} -g1 -DNDEBUG")

add_library(fvmm_flags INTERFACE)
target_compile_options(fvmm_flags INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
                       $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>)
if(FVMM_WERROR)
  target_compile_options(fvmm_flags INTERFACE -Werror)
endif()
if(FVMM_SANITIZE)
  target_compile_options(fvmm_flags INTERFACE -fsanitize=${FVMM_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(fvmm_flags INTERFACE -fsanitize=${FVMM_SANITIZE})
  target_compile_definitions(fvmm_flags INTERFACE FVMM_SANITIZED=1)
  # A null pointer faults by itself, and a wrong dynamic type is seen at its first access; both checks double the
  # build. What is found ends the program: a report that nobody reads is none.
  if(FVMM_SANITIZE MATCHES "undefined")
    target_compile_options(fvmm_flags INTERFACE -fno-sanitize=null,vptr -fno-sanitize-recover=undefined)
  endif()
  # Sanitizer instrumentation makes GCC 12 report false uninitialized and bounds warnings in the standard library.
  target_compile_options(fvmm_flags INTERFACE -Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow
                         -Wno-restrict -Wno-tsan)
endif()
if(FVMM_FUZZ)
  target_compile_options(fvmm_flags INTERFACE -fsanitize=fuzzer-no-link -Wno-unknown-warning-option)
endif()
target_include_directories(fvmm_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)

find_program(FVMM_CCACHE ccache)
if(FVMM_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${FVMM_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FVMM_CCACHE})
endif()
find_program(FVMM_MOLD mold)
if(FVMM_MOLD)
  add_link_options(-fuse-ld=mold)
endif()
