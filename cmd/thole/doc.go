// SPDX-License-Identifier: Apache-2.0

// Thole isolates labelled processes and containers from each other; see "thole --help".
package main
