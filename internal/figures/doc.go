// SPDX-License-Identifier: Apache-2.0

// Figures writes the tables of docs/PERFORMANCE.md from what the benchmarks print:
//
//	go test -bench . -benchtime 1x ./internal/e2e | go run ./internal/figures docs/PERFORMANCE.md TABLE…
//
// It writes the tables that it is told, and that of the machine. Each table stands between the lines "<!-- table NAME
// -->" and "<!-- end -->"; all else in the file is left as it is. What the benchmarks print is printed. Nothing is
// written where the benchmarks failed, or where a figure of a table is missing. A benchmark reports a figure as a
// metric, and its spread, where it has one, as METRIC:low and METRIC:high.
package main
