// SPDX-License-Identifier: Apache-2.0

// Package mutants has tables that are wrong: a rule is left out, a chain accepts everything, or something is not
// compiled. Tests of the judges load tables like this, and must find out.
package mutants
