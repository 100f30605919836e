package daemon

import (
	"flag"
	"fmt"
	"reflect"
	"testing"

	"thole/internal/promise"
)

var updatePromise = flag.Bool("update-promise", false, "write testdata/state.txt anew")

// TestPromise: what the next version of the program reads of the state directory stays as it is.
func TestPromise(t *testing.T) {
	text := fmt.Sprintf("version %d\n", stateVersion)
	for _, file := range []struct {
		name  string
		value any
	}{{policiesFile, storedSet{}}, {memoryFile, memory{}}, {memoryFile + ", appended", memoryChange{}}} {
		text += file.name + "\n" + promise.Fields("  ", reflect.TypeOf(file.value))
	}
	text += keyFile + "\n" + disarmedFile + "\n"
	promise.Hold(t, "testdata/state.txt", text, *updatePromise)
}
