package bitset

import (
	"testing"

	"pgregory.net/rapid"
)

// TestBitset compares the free list with a map, over any sequence.
func TestBitset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Set
		model := map[uint64]bool{}
		number := rapid.OneOf(rapid.Uint64Range(0, 100), rapid.Uint64Range(4000, 4200), rapid.Uint64Range(0, 1<<28))
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i := number.Draw(t, "i")
				if b.Add(i) == model[i] {
					t.Fatalf("add(%d) misjudges whether it is new", i)
				}
				model[i] = true
			},
			"remove": func(t *rapid.T) {
				i := number.Draw(t, "i")
				if b.Remove(i) != model[i] {
					t.Fatalf("remove(%d) misjudges whether it was there", i)
				}
				delete(model, i)
			},
			"take": func(t *rapid.T) {
				i, ok := b.First()
				if !ok {
					return
				}
				b.Remove(i)
				delete(model, i)
			},
			"": func(t *rapid.T) {
				if b.N != uint64(len(model)) {
					t.Fatalf("has %d members, want %d", b.N, len(model))
				}
				var least uint64
				found := false
				for i := range model {
					if !b.Has(i) {
						t.Fatalf("lost %d", i)
					}
					if !found || i < least {
						least, found = i, true
					}
				}
				if i, ok := b.First(); ok != found || ok && i != least {
					t.Fatalf("first is %d, %v, want %d, %v", i, ok, least, found)
				}
			},
		})
	})
}
