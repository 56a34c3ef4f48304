package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// BenchmarkAllocate writes 4 KiB into new clusters of 1 MiB, each with the one before it or far from
// it in the index, by so many at a time. HOLDFAST_BENCH_DIR says where; else it is what TMPDIR says.
func BenchmarkAllocate(b *testing.B) {
	const clusters = 64 << 10
	for _, depth := range []int{1, 32, 128} {
		for _, step := range []int64{1, 12347} {
			b.Run(fmt.Sprintf("depth=%d/step=%d", depth, step), func(b *testing.B) {
				dir, err := os.MkdirTemp(os.Getenv("HOLDFAST_BENCH_DIR"), "holdfast")
				if err != nil {
					b.Fatal(err)
				}
				defer os.RemoveAll(dir)
				path := filepath.Join(dir, "image")
				if err := ploop.Create(path, ploop.CreateOptions{Size: clusters << 20, ClusterSize: 1 << 20}); err != nil {
					b.Fatal(err)
				}
				s, err := Open([]image.Ref{{Path: path}}, Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				var next atomic.Int64
				var group sync.WaitGroup
				b.ResetTimer()
				for range depth {
					group.Go(func() {
						p := storage.AlignedBuffer(4096)
						for k := range p {
							p[k] = byte(k)
						}
						for {
							i := next.Add(1) - 1
							if i >= int64(min(b.N, clusters)) {
								return
							}
							if _, err := s.WriteAt(p, i*step%clusters<<20); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				b.StopTimer()
			})
		}
	}
}
