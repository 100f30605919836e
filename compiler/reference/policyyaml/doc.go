// SPDX-License-Identifier: Apache-2.0

// Package policyyaml prints policies as documents, which tests read and show. The package reads nothing.
package policyyaml
