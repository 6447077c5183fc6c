// The type traits that MSL has.
#pragma once

namespace metal {

template <typename T, T V> struct integral_constant {
  using value_type = T;
  using type = integral_constant;
  static constexpr T value = V;
  MSL_FN constexpr operator T() const { return V; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool B, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> { using type = T; };
template <bool B, typename T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, typename T, typename F> struct conditional { using type = T; };
template <typename T, typename F> struct conditional<false, T, F> {
  using type = F;
};
template <bool B, typename T, typename F>
using conditional_t = typename conditional<B, T, F>::type;

// A parameter of this type takes no part in template argument deduction.
template <typename T> struct __identity { using type = T; };
template <typename T> using __not_deduced = typename __identity<T>::type;

template <typename T, typename U> struct is_same : false_type {};
template <typename T> struct is_same<T, T> : true_type {};

template <typename T> struct remove_const : __identity<T> {};
template <typename T> struct remove_const<const T> : __identity<T> {};
template <typename T> struct remove_volatile : __identity<T> {};
template <typename T> struct remove_volatile<volatile T> : __identity<T> {};
template <typename T>
struct remove_cv : remove_const<typename remove_volatile<T>::type> {};
template <typename T> struct remove_reference : __identity<T> {};
template <typename T> struct remove_reference<T&> : __identity<T> {};
template <typename T> struct remove_reference<T&&> : __identity<T> {};
template <typename T> struct remove_pointer : __identity<T> {};
template <typename T> struct remove_pointer<T*> : __identity<T> {};
template <typename T> struct remove_addrspace : __identity<T> {};
#ifdef MSL_LINT
template <typename T> struct remove_addrspace<device T> : __identity<T> {};
template <typename T> struct remove_addrspace<constant T> : __identity<T> {};
template <typename T> struct remove_addrspace<threadgroup T> : __identity<T> {};
#endif
template <typename T> using remove_const_t = typename remove_const<T>::type;
template <typename T> using remove_volatile_t = typename remove_volatile<T>::type;
template <typename T> using remove_cv_t = typename remove_cv<T>::type;
template <typename T> using remove_reference_t = typename remove_reference<T>::type;
template <typename T> using remove_pointer_t = typename remove_pointer<T>::type;
template <typename T>
using remove_addrspace_t = typename remove_addrspace<remove_cv_t<T>>::type;
template <typename T> using decay_t = remove_addrspace_t<remove_reference_t<T>>;

template <typename T> struct is_reference : false_type {};
template <typename T> struct is_reference<T&> : true_type {};
template <typename T> struct is_reference<T&&> : true_type {};
template <typename T> struct is_pointer : false_type {};
template <typename T> struct is_pointer<T*> : true_type {};

template <typename T, typename... List>
constexpr bool __is_one_of = (is_same<T, List>::value || ...);
template <typename T>
struct is_integral
    : bool_constant<__is_one_of<remove_cv_t<T>, bool, char, signed char, uchar, short,
                                ushort, int, uint, long, ulong>> {};
template <typename T>
struct is_floating_point
    : bool_constant<__is_one_of<remove_cv_t<T>, float, half, bfloat>> {};
template <typename T>
struct is_arithmetic
    : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <typename T>
struct is_unsigned : bool_constant<is_integral<T>::value && !__is_signed(T)> {};
template <typename T>
struct is_signed
    : bool_constant<is_arithmetic<T>::value && !is_unsigned<T>::value> {};
template <typename T> struct is_void : is_same<remove_cv_t<T>, void> {};
template <typename T> struct is_enum : bool_constant<__is_enum(T)> {};
template <typename T> struct is_class : bool_constant<__is_class(T)> {};
template <typename T> struct is_empty_type : bool_constant<__is_empty(T)> {};
template <typename From, typename To>
struct is_convertible : bool_constant<__is_convertible(From, To)> {};

template <typename T> constexpr bool is_reference_v = is_reference<T>::value;
template <typename T> constexpr bool is_pointer_v = is_pointer<T>::value;
template <typename T> constexpr bool is_integral_v = is_integral<T>::value;
template <typename T>
constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <typename T> constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <typename T> constexpr bool is_signed_v = is_signed<T>::value;
template <typename T> constexpr bool is_unsigned_v = is_unsigned<T>::value;
template <typename T> constexpr bool is_void_v = is_void<T>::value;
template <typename T> constexpr bool is_enum_v = is_enum<T>::value;
template <typename T, typename U> constexpr bool is_same_v = is_same<T, U>::value;
template <typename From, typename To>
constexpr bool is_convertible_v = is_convertible<From, To>::value;

// MLX's atomic.h uses the two spellings with an underscore.
template <typename...> struct _disjunction : false_type {};
template <typename B, typename... Rest>
struct _disjunction<B, Rest...> : conditional_t<B::value, B, _disjunction<Rest...>> {
};
template <typename...> struct _conjunction : true_type {};
template <typename B, typename... Rest>
struct _conjunction<B, Rest...> : conditional_t<B::value, _conjunction<Rest...>, B> {
};

template <typename T> struct make_unsigned : __identity<T> {};
template <> struct make_unsigned<char> : __identity<uchar> {};
template <> struct make_unsigned<signed char> : __identity<uchar> {};
template <> struct make_unsigned<short> : __identity<ushort> {};
template <> struct make_unsigned<int> : __identity<uint> {};
template <> struct make_unsigned<long> : __identity<ulong> {};
template <typename T> using make_unsigned_t = typename make_unsigned<T>::type;

template <typename T> struct make_signed : __identity<T> {};
template <> struct make_signed<uchar> : __identity<char> {};
template <> struct make_signed<ushort> : __identity<short> {};
template <> struct make_signed<uint> : __identity<int> {};
template <> struct make_signed<ulong> : __identity<long> {};
template <typename T> using make_signed_t = typename make_signed<T>::type;

template <typename T> T&& declval();

}  // namespace metal
