// The list of an op's arguments. <op>_arguments.h has each argument once, in the order of the Python signature;
// whatever treats all of them alike loops over it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "nsa_kernel/types.h"

namespace nsa_kernel {

/// A value of an enum and its word in Python and in messages.
template <class T>
struct Word {
  const char* text;
  T value;
};

/// All words of an enum, in the order in which messages list them. Every enum that is an argument has its own.
template <class T>
inline constexpr std::array<Word<T>, 0> kWords{};

/// The word of `value`; null for a value that is none of the enum's.
template <class T>
constexpr const char* word_of(T value) {
  for (const Word<T>& word : kWords<T>) {
    if (word.value == value) return word.text;
  }
  return nullptr;
}

/// What an argument is.
enum class Role { lengths, output, flat_output, table, output_table, number, word, flag };

template <class Field>
struct RoleOf {
  static constexpr Role value = std::is_enum_v<Field> ? Role::word : Role::flag;
  static_assert(std::is_enum_v<Field> || std::is_same_v<Field, bool>, "no argument is of this type");
};
template <class Field>
struct RoleOf<std::optional<Field>> : RoleOf<Field> {};
template <>
struct RoleOf<int64_t> {
  static constexpr Role value = Role::number;
};
template <>
struct RoleOf<LengthView> {
  static constexpr Role value = Role::lengths;
};
template <>
struct RoleOf<View<int32_t>> {
  static constexpr Role value = Role::output;
};
template <>
struct RoleOf<FlatView> {
  static constexpr Role value = Role::flat_output;
};
template <>
struct RoleOf<TableView<const int32_t>> {
  static constexpr Role value = Role::table;
};
template <>
struct RoleOf<TableView<int32_t>> {
  static constexpr Role value = Role::output_table;
};

constexpr bool is_array(Role role) { return role <= Role::output_table; }
constexpr bool is_output(Role role) {
  return role == Role::output || role == Role::flat_output || role == Role::output_table;
}

/// One argument: a member of the op's struct, whose type says what it is. A LengthView is an input of lengths, a View
/// an output, a FlatView one of one or two dimensions, a TableView of constants an input table, another TableView an
/// output table; the rest are numbers, words and flags. Where an optional one is not given, the member keeps its
/// initializer.
template <class Struct, class Field>
struct Argument {
  static constexpr Role kRole = RoleOf<Field>::value;

  const char* name;
  Field Struct::* field;
  bool is_required;
  const char* shape;     ///< of an array, in words; empty for others
  const char* sentence;  ///< its line of the documentation
};

/// The role of an argument, by its type.
template <class Entry>
inline constexpr Role kRoleOf = std::remove_cvref_t<Entry>::kRole;

template <class Struct, class Field>
constexpr Argument<Struct, Field> required(const char* name, Field Struct::* field, const char* shape,
                                           const char* sentence) {
  return {name, field, true, shape, sentence};
}

template <class Struct, class Field>
constexpr Argument<Struct, Field> required(const char* name, Field Struct::* field, const char* sentence) {
  return {name, field, true, "", sentence};
}

template <class Struct, class Field>
constexpr Argument<Struct, Field> optional(const char* name, Field Struct::* field, const char* shape,
                                           const char* sentence) {
  return {name, field, false, shape, sentence};
}

template <class Struct, class Field>
constexpr Argument<Struct, Field> optional(const char* name, Field Struct::* field, const char* sentence) {
  return {name, field, false, "", sentence};
}

/// All arguments of an op.
template <class... Entries>
struct ArgumentList {
  static constexpr size_t kSize = sizeof...(Entries);
  static constexpr size_t kArrays = (size_t{0} + ... + size_t{is_array(kRoleOf<Entries>)});

  /// Where its arrays stand among all arguments.
  static constexpr std::array<size_t, kArrays> kArrayPlaces = [] {
    std::array<size_t, kArrays> places{};
    size_t i = 0, count = 0;
    ((is_array(kRoleOf<Entries>) ? void(places[count++] = i++) : void(++i)), ...);
    return places;
  }();

  const char* op;     ///< as messages name it
  size_t positional;  ///< so many may go by position, the others by name alone
  std::tuple<Entries...> entries;

  /// Calls `visit(i, argument)` for each, in order.
  template <class Visit>
  constexpr void for_each(Visit visit) const {
    std::apply(
        [&](const auto&... argument) {
          size_t i = 0;
          (visit(i++, argument), ...);
        },
        entries);
  }

  /// The same for its arrays alone, counted among themselves.
  template <class Visit>
  constexpr void for_each_array(Visit visit) const {
    size_t count = 0;
    for_each([&](size_t, const auto& argument) {
      if constexpr (is_array(kRoleOf<decltype(argument)>)) visit(count++, argument);
    });
  }
};

template <class... Entries>
constexpr ArgumentList<Entries...> argument_list(const char* op, size_t positional, Entries... entries) {
  return {op, positional, {entries...}};
}

}  // namespace nsa_kernel
