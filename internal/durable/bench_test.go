package durable_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/durable"
)

// BenchmarkWriteOne measures Write of one file of 2 KB. x-limit is its median time
// over that of the same system calls by hand: what two syncs and a rename cost.
func BenchmarkWriteOne(b *testing.B) {
	compareWrites(b, 1, map[string]func(*bare, []durable.Named) error{
		"hand": (*bare).sequential,
	})
}

// BenchmarkWriteMany measures Write of 64 files. x-limit is its median time over
// that of the cheapest of several ways by hand, whose medians it reports too.
func BenchmarkWriteMany(b *testing.B) {
	compareWrites(b, 64, map[string]func(*bare, []durable.Named) error{
		"sequential": (*bare).sequential,
		"parallel4":  func(d *bare, files []durable.Named) error { return d.parallel(files, 4) },
		"parallel16": func(d *bare, files []durable.Named) error { return d.parallel(files, 16) },
		"parallel64": func(d *bare, files []durable.Named) error { return d.parallel(files, 64) },
	})
}

// compareWrites writes n files with Write and in other ways, in turns and in random
// order, so that the disk's moods meet all of them alike.
func compareWrites(b *testing.B, n int, ways map[string]func(*bare, []durable.Named) error) {
	files := make([]durable.Named, n)
	for i := range files {
		files[i] = durable.Named{Name: fmt.Sprint("key", i), Data: make([]byte, 2048)}
	}
	fsys, err := durable.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	d := durable.New(fsys)
	defer d.Close()
	byHand := newBare(b)

	ways["Write"] = func(_ *bare, files []durable.Named) error { return write(d, files...) }
	times := map[string][]time.Duration{}
	for b.Loop() {
		for way, f := range ways {
			start := time.Now()
			if err := f(byHand, files); err != nil {
				b.Fatal(err)
			}
			times[way] = append(times[way], time.Since(start))
		}
	}
	report(b, times)
}

func report(b *testing.B, times map[string][]time.Duration) {
	b.ReportMetric(0, "ns/op") // it would sum up all ways
	ours, limit := median(times["Write"]), time.Duration(0)
	b.ReportMetric(float64(ours.Microseconds()), "µs/Write")
	delete(times, "Write")
	for way, t := range times {
		m := median(t)
		b.ReportMetric(float64(m.Microseconds()), "µs/"+way)
		if limit == 0 || m < limit {
			limit = m
		}
	}
	b.ReportMetric(float64(ours)/float64(limit), "x-limit")
}

func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// bare is a directory written by hand, with no care for what fails.
type bare struct {
	path string
	dir  *os.File
}

func newBare(b *testing.B) *bare {
	path := b.TempDir()
	dir, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { dir.Close() })
	return &bare{path: path, dir: dir}
}

func (d *bare) temp(name string) string { return filepath.Join(d.path, ".tmp-"+name) }

func (d *bare) create(f durable.Named) error {
	file, err := os.OpenFile(d.temp(f.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(f.Data)
	return errors.Join(err, file.Sync(), file.Close())
}

func (d *bare) publish(files []durable.Named) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, os.Rename(d.temp(f.Name), filepath.Join(d.path, f.Name)))
	}
	return errors.Join(append(errs, d.dir.Sync())...)
}

func (d *bare) sequential(files []durable.Named) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, d.create(f))
	}
	return errors.Join(append(errs, d.publish(files))...)
}

func (d *bare) parallel(files []durable.Named, workers int) error {
	queue, errs := make(chan int, len(files)), make([]error, len(files))
	for i := range files {
		queue <- i
	}
	close(queue)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range queue {
				errs[i] = d.create(files[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, d.publish(files))...)
}
