package stack

import (
	"fmt"
	"os"
	"testing"

	"holdfast/hack/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.Child()
	fencedChild()
	code := m.Run()
	if n := OpenHandovers(); n != 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "%d handovers were neither committed nor aborted\n", n)
		code = 1
	}
	os.Exit(code)
}
