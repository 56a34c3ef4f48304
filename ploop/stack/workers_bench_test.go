package stack

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// latentFile is storage with latency and without other limits.
type latentFile struct {
	storage.File
	write, sync time.Duration
}

func (f *latentFile) WriteAt(p []byte, off int64) (int, error) {
	time.Sleep(f.write)
	return f.File.WriteAt(p, off)
}

func (f *latentFile) Sync() error {
	time.Sleep(f.sync)
	return f.File.Sync()
}

// BenchmarkWorkers is how many clusters a second get a place, by how many do it at the same
// time, on storage of the latency of an SSD and of a network: what package device's number of
// workers is chosen by. With copy, a cluster is copied up, by pieces of 256 KiB.
func BenchmarkWorkers(b *testing.B) {
	const clusters, cluster = 1 << 16, 1 << 20
	for _, kind := range []struct {
		name        string
		write, sync time.Duration
	}{{"ssd", 100 * time.Microsecond, time.Millisecond}, {"network", time.Millisecond, 5 * time.Millisecond}} {
		for _, deltas := range []int{1, 2} {
			for _, workers := range []int{8, 16, 32, 64, 128} {
				b.Run(fmt.Sprintf("%s/copy=%v/workers=%d", kind.name, deltas == 2, workers), func(b *testing.B) {
					refs := []image.Ref{fullImage(b, clusters*cluster), {Path: filepath.Join(memDir(b), "top")}}[2-deltas:]
					if err := ploop.Create(refs[deltas-1].Path, ploop.CreateOptions{Size: clusters * cluster, ClusterSize: cluster}); err != nil {
						b.Fatal(err)
					}
					s, err := Open(refs, Options{open: func(p string, w, d bool) (storage.File, error) {
						f, err := storage.Open(p, w, d)
						return &latentFile{f, kind.write, kind.sync}, err
					}})
					if err != nil {
						b.Fatal(err)
					}
					defer s.closeFiles()
					var next atomic.Int64
					var wg sync.WaitGroup
					b.ResetTimer()
					for range workers {
						wg.Go(func() {
							p := storage.AlignedBuffer(4096)
							p[0] = 1
							for i := next.Add(1); i <= int64(b.N) && i < clusters; i = next.Add(1) {
								if _, err := s.WriteAt(p, i*cluster); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "clusters/s")
				})
			}
		}
	}
}
