package state

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestClaimsRace: many claim, drop and sweep at once, and never do two write one file. What
// fails is refused, and names somebody who was there.
func TestClaimsRace(t *testing.T) {
	run := t.TempDir()
	f := someFile(t, t.TempDir(), "image", true)
	var inside sync.Mutex
	writer, reading := "", 0
	took := 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprint("d", i)
			c := NewClaims(run, name)
			want := f
			want.Write = i%2 == 0
			for range 2000 {
				if err := c.Add([]ClaimedFile{want}); err != nil {
					var refused *ClaimError
					if !errors.As(err, &refused) || refused.Owner == name {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				inside.Lock()
				took++
				if writer != "" || want.Write && reading > 0 {
					t.Errorf("%s has the file, and so have %q and %d readers", name, writer, reading)
				}
				if want.Write {
					writer = name
				} else {
					reading++
				}
				inside.Unlock()
				runtime.Gosched()
				inside.Lock()
				if want.Write {
					writer = ""
				} else {
					reading--
				}
				inside.Unlock()
				c.Drop([]ClaimedFile{want})
				if i == 0 {
					SweepClaims(run)
				}
			}
		})
	}
	wg.Wait()
	if took == 0 {
		t.Error("nobody got the file")
	}
	SweepClaims(run)
	if n := claimFiles(t, run); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// TestAnyClaims compares any sequence of claims with what is meant.
func TestAnyClaims(t *testing.T) {
	images := t.TempDir()
	var files []ClaimedFile
	for i := range 3 {
		files = append(files, someFile(t, images, fmt.Sprint(i), false))
	}
	runs := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		run, err := os.MkdirTemp(runs, "")
		if err != nil {
			t.Fatal(err)
		}
		type use struct{ readers, writers int }
		names := []string{"a", "b", "c"}
		claims := map[string]*Claims{}
		want := map[string][]use{}
		for _, n := range names {
			claims[n], want[n] = NewClaims(run, n), make([]use, len(files))
			defer claims[n].Close()
		}
		set := func(t *rapid.T) (list []ClaimedFile, index []int) {
			for range rapid.IntRange(1, 3).Draw(t, "count") {
				i := rapid.IntRange(0, len(files)-1).Draw(t, "file")
				f := files[i]
				f.Write = rapid.Bool().Draw(t, "write")
				list, index = append(list, f), append(index, i)
			}
			return list, index
		}
		device := rapid.SampledFrom(names)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := device.Draw(t, "device")
				list, index := set(t)
				refused := false
				for k, f := range list {
					for _, o := range names {
						u := want[o][index[k]]
						refused = refused || o != n && (u.writers > 0 || f.Write && u.readers > 0)
					}
				}
				err := claims[n].Add(list)
				if refused != errors.Is(err, ErrClaimed) || !refused && err != nil {
					t.Fatalf("%s wants %v: %v", n, list, err)
				}
				if err != nil {
					return
				}
				for k, f := range list {
					if f.Write {
						want[n][index[k]].writers++
					} else {
						want[n][index[k]].readers++
					}
				}
			},
			"drop": func(t *rapid.T) {
				n := device.Draw(t, "device")
				list, index := set(t)
				claims[n].Drop(list)
				for k, f := range list {
					u := &want[n][index[k]]
					if f.Write {
						u.writers = max(0, u.writers-1)
					} else {
						u.readers = max(0, u.readers-1)
					}
				}
			},
			"sweep": func(t *rapid.T) {
				if err := SweepClaims(run); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for i, f := range files {
					owners := map[string]bool{}
					for _, n := range names {
						if want[n][i] != (use{}) {
							owners[n] = true
						}
					}
					if name, ok := Owner(run, f.ID); ok != (len(owners) > 0) || ok && !owners[name] {
						t.Fatalf("file %d: owner %q, %v, want one of %v", i, name, ok, owners)
					}
				}
			},
		})
	})
}
