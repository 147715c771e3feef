// Kernels with a fault each, to show that the emulator sees it.
#pragma once

#include <string>

// Faults that end the launch with a Failure.
void test_faults();
// Missing barriers and memory that was not set: the results tell.
void test_races();
// Faults of memory, which end the program with the sanitizer's report.
void run_memory_fault(const std::string& name);
