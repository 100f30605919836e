package daemon

import (
	"flag"
	"fmt"
	"reflect"
	"testing"

	"thole/internal/promise"
	"thole/internal/state"
)

var updatePromise = flag.Bool("update-promise", false, "write testdata/state.txt anew")

// TestPromise: what the next version of the program reads of the state directory stays as it is.
func TestPromise(t *testing.T) {
	text := fmt.Sprintf("version %d\n", state.Version)
	for _, file := range []struct {
		name  string
		value any
	}{
		{state.PoliciesFile, state.StoredSet{}},
		{state.TableFile, state.TableState{}},
		{state.TableFile + ", appended", state.TableChange{}},
	} {
		text += file.name + "\n" + promise.Fields("  ", reflect.TypeOf(file.value))
	}
	text += state.KeyFile + "\n" + state.DisarmedFile + "\n"
	promise.Hold(t, "testdata/state.txt", text, *updatePromise)
}
