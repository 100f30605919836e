// SPDX-License-Identifier: Apache-2.0

// Package rulesettest makes tables for tests: one of everything that the language of
// ruleset has, and random ones.
package rulesettest
