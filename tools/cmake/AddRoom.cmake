# add_room(NAME base SOURCES a.cc b.cc [DEPS actor proto] [LINK spdlog::spdlog])
#   A room is a static library of its folder. DEPS are rooms it may know; LINK are outside libraries, private to it.
# add_role(NAME kvstore ...same...)
#   A room that is also a process: main.cc is built into an executable of the room's name.
# add_room_test(NAME base_result SOURCES result_test.cc [DEPS base model] [LABEL golden] [HOST] [ARGS --gtest_shuffle])
#   A GoogleTest program build/bin/test_NAME, registered with ctest under NAME.
#
# The link order alone does not stop an #include, so the direction is checked here as well: at configure
# time every quoted include in the room's files must begin with the room itself or one of its DEPS
# (and, through them, what those may know).

set_property(GLOBAL PROPERTY SERVAL_ROOMS "")

function(check_includes ROOM)
  get_property(KNOWN GLOBAL PROPERTY ROOM_${ROOM}_KNOWS)
  foreach(FILE ${ARGN})
    file(STRINGS ${FILE} LINES REGEX "^#include \"[a-z_]+/")
    foreach(LINE ${LINES})
      string(REGEX REPLACE "^#include \"([a-z_]+)/.*" "\\1" OTHER "${LINE}")
      if(NOT OTHER IN_LIST KNOWN)
        message(FATAL_ERROR "${FILE}: room '${ROOM}' must not know '${OTHER}' (${LINE})")
      endif()
    endforeach()
  endforeach()
endfunction()

function(add_room)
  cmake_parse_arguments(R "" "NAME" "SOURCES;DEPS;LINK" ${ARGN})
  add_library(${R_NAME}_room STATIC ${R_SOURCES})
  target_include_directories(${R_NAME}_room PUBLIC ${PROJECT_SOURCE_DIR})
  set(KNOWS ${R_NAME} ${R_DEPS})
  foreach(DEP ${R_DEPS})
    target_link_libraries(${R_NAME}_room PUBLIC ${DEP}_room)
    get_property(MORE GLOBAL PROPERTY ROOM_${DEP}_KNOWS)
    list(APPEND KNOWS ${MORE})
  endforeach()
  target_link_libraries(${R_NAME}_room PRIVATE ${R_LINK})
  list(REMOVE_DUPLICATES KNOWS)
  set_property(GLOBAL PROPERTY ROOM_${R_NAME}_KNOWS ${KNOWS})
  file(GLOB FILES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.h ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  check_includes(${R_NAME} ${FILES})
endfunction()

function(add_role)
  cmake_parse_arguments(R "" "NAME" "SOURCES;DEPS;LINK" ${ARGN})
  add_room(${ARGN})
  add_executable(${R_NAME} main.cc)
  target_link_libraries(${R_NAME} PRIVATE ${R_NAME}_room ${R_LINK})
endfunction()

# Tests carry a label (default unit); target LABEL_tests builds all of a label. HOST adds the label host as well
# (run under TSan). SANITIZED filter: of a long test of bits, the cases that sanitizer builds run; an optimised build
# runs all of them, under the label golden too.
foreach(LABEL unit golden sim process host)
  add_custom_target(${LABEL}_tests)
endforeach()

function(add_room_test)
  cmake_parse_arguments(T "HOST" "NAME;LABEL;SANITIZED" "SOURCES;DEPS;LINK;ARGS" ${ARGN})
  if(NOT T_LABEL)
    set(T_LABEL unit)
  endif()
  add_executable(test_${T_NAME} ${T_SOURCES})
  target_compile_definitions(test_${T_NAME} PRIVATE SERVAL_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                             SERVAL_BINARY_DIR="${PROJECT_BINARY_DIR}")
  foreach(DEP ${T_DEPS})
    target_link_libraries(test_${T_NAME} PRIVATE ${DEP}_room)
  endforeach()
  target_link_libraries(test_${T_NAME} PRIVATE ${T_LINK} GTest::gtest_main)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(test_${T_NAME} PRIVATE -O1)  # what is measured and tested is in the rooms
  endif()
  set(FILTER "")
  if(T_SANITIZED AND SERVAL_SANITIZE)
    set(FILTER "--gtest_filter=${T_SANITIZED}")
  endif()
  add_test(NAME ${T_NAME} COMMAND test_${T_NAME} ${FILTER} ${T_ARGS})
  add_dependencies(${T_LABEL}_tests test_${T_NAME})
  if(T_SANITIZED AND NOT SERVAL_SANITIZE)
    set(T_LABEL "${T_LABEL};golden")
    add_dependencies(golden_tests test_${T_NAME})
  endif()
  set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABEL}" TIMEOUT 900)
  if(T_HOST)
    set_tests_properties(${T_NAME} PROPERTIES LABELS "${T_LABEL};host" RUN_SERIAL TRUE)  # real sockets, real time
    add_dependencies(host_tests test_${T_NAME})
  endif()
endfunction()

find_package(GTest QUIET)
set(SERVAL_TESTS ${GTest_FOUND})
