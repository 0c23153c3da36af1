# The search for nvcc, of CMakeLists.txt and of the build backend, which runs this file alone: cmake -P find_nvcc.cmake.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  # A compiler from the Python package index comes last. Alone, CMake knows no system path, so both leave it out.
  find_program(NSA_KERNEL_NVCC nvcc NO_CMAKE_PATH NO_CMAKE_SYSTEM_PATH HINTS ENV CUDA_HOME ENV CUDA_PATH
               PATHS /usr/local/cuda ENV NSA_KERNEL_PYTHON_PATH PATH_SUFFIXES bin nvidia/cu13/bin)
  if(NOT NSA_KERNEL_NVCC)
    message(FATAL_ERROR "No nvcc found. Set CUDA_HOME or CMAKE_CUDA_COMPILER, or build without CUDA: "
                        "-DNSA_KERNEL_CUDA=OFF, with pip NSA_KERNEL_CUDA=OFF in the environment")
  endif()
  set(CMAKE_CUDA_COMPILER "${NSA_KERNEL_NVCC}")
endif()
