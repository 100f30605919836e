// SPDX-License-Identifier: Apache-2.0

// Package mutants has tables that are wrong: a rule is left out, or a chain accepts everything. Tests of the judges
// change the compiled table like this, and must find out.
package mutants
