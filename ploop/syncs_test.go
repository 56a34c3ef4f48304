package ploop

import "testing"

// TestSyncThatOutlivesManyResumes has a sync hang over more attempts to go on elsewhere
// than there are tokens to tell them apart, and come back then.
func TestSyncThatOutlivesManyResumes(t *testing.T) {
	for resumes := range 40 {
		for _, ok := range []bool{true, false} {
			var y syncs
			y.init()
			hung := y.begin()
			for range resumes {
				y.forget()
			}
			if resumes == 0 {
				y.end(hung, 1, ok)
			}
			for n := range uint64(3) {
				token := y.begin()
				if resumes > 0 && n == 1 && y.end(hung, 1000, ok) != 0 {
					t.Errorf("after %d resumes, ok %v: what hung is believed", resumes, ok)
				}
				if got := y.end(token, 2+n, true); got != 2+n {
					t.Errorf("after %d resumes, ok %v: sync %d makes %d certain", resumes, ok, 2+n, got)
				}
			}
		}
	}
}
