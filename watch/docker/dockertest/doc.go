// SPDX-License-Identifier: Apache-2.0

// Package dockertest has a container engine for tests. It answers Docker's API on a Unix socket about containers that a
// test makes up; it starts no process, and makes no cgroup. It answers only the questions that package docker asks.
package dockertest
