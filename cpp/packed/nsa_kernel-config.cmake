# Unpacks the library into the build tree, in a folder of its own for each build of it, and hands over to what lies there.
set(nsa_kernel_archive "${CMAKE_CURRENT_LIST_DIR}/nsa_kernel.tar.xz")
file(SHA256 "${nsa_kernel_archive}" nsa_kernel_hash)
set(nsa_kernel_prefix "${CMAKE_BINARY_DIR}/nsa_kernel-${nsa_kernel_hash}")
if(NOT EXISTS "${nsa_kernel_prefix}")
  file(ARCHIVE_EXTRACT INPUT "${nsa_kernel_archive}" DESTINATION "${nsa_kernel_prefix}.part")
  file(RENAME "${nsa_kernel_prefix}.part" "${nsa_kernel_prefix}")
endif()
include("${nsa_kernel_prefix}/lib/cmake/nsa_kernel/nsa_kernel-config.cmake")
