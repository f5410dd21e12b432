#!/usr/bin/env bash
# g++ on a large file: templates, each level of which is code of its own.
set -eu
depth=$(awk "BEGIN { printf \"%d\", 50 * $1 + 1 }")
cd "$2"
if [ "${3-}" = prepare ]; then
    cat >heavy.cc <<CC
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>
template <int N> struct Level {
    using Key = std::tuple<int, std::string, std::variant<int, double, std::string>>;
    std::map<int, std::vector<std::function<std::string(std::unordered_map<int, Key>&)>>> table;
    int walk() {
        std::regex expression("a+b*" + std::to_string(N));
        std::unordered_map<int, Key> seen;
        table[N].push_back([](std::unordered_map<int, Key>& m) { m[N] = Key{N, "x", N * 0.5}; return std::string("y"); });
        for (auto& f : table[N]) f(seen);
        return static_cast<int>(seen.size()) + Level<N - 1>{}.walk();
    }
};
template <> struct Level<0> { int walk() { return 0; } };
int main() { std::cout << Level<$depth>{}.walk() << "\n"; }
CC
    exit
fi
g++ -std=c++17 -O2 -c heavy.cc -o heavy.o
sha256sum heavy.o
