// SPDX-License-Identifier: Apache-2.0

// Package lookpath finds the file of a program by its name, as execvp(3) does. It reads the file system and changes
// nothing.
package lookpath
