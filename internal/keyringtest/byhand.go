package keyringtest

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

// VersusByHand benchmarks durable writes to a directory. For each round, next makes files with new names, and the function
// that writes them. The same files are also written by hand, with the system calls that every durable write needs,
// and if there are several files, in several ways. All ways take turns in random order, so that changes in the
// disk's speed affect all of them alike, and in the same directory, because the cost of a new file depends on what is
// around it on the disk. The cheapest way is the one with the lowest median. x-limit is the median of the ratio of the
// write to the cheapest way in the same round. The medians of all ways are reported too.
func VersusByHand(b *testing.B, path string, next func() (files []durable.Named, write func() error)) {
	dir, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	times := map[string][]float64{}
	for b.Loop() {
		files, write := next()
		ways := byHandWays(len(files))
		ways["Write"] = func(*byHand, []durable.Named) error { return write() }
		for way, do := range ways {
			d := &byHand{path: path, prefix: way + "-", dir: dir}
			start := time.Now()
			if err := do(d, files); err != nil {
				b.Fatal(err)
			}
			times[way] = append(times[way], float64(time.Since(start).Nanoseconds())/1000)
		}
	}
	b.ReportMetric(0, "ns/op") // it would sum up all ways
	cheapest := ""
	for way, t := range times {
		median := Median(slices.Clone(t))
		b.ReportMetric(median, "µs/"+way)
		if way != "Write" && (cheapest == "" || median < Median(slices.Clone(times[cheapest]))) {
			cheapest = way
		}
	}
	var ratios []float64
	for i, limit := range times[cheapest] {
		ratios = append(ratios, times["Write"][i]/limit)
	}
	b.ReportMetric(Median(ratios), "x-limit")
}

type byHandWay func(*byHand, []durable.Named) error

// byHandWays are the ways to write so many files. For many files the slow ones are left out.
func byHandWays(files int) map[string]byHandWay {
	ways := map[string]byHandWay{}
	for _, workers := range []int{1, 4, 16, 64} {
		if workers < 16 && files > 64 {
			continue
		}
		if workers <= files {
			ways[fmt.Sprint("parallel", workers)] = func(d *byHand, f []durable.Named) error { return d.parallel(f, workers) }
		}
		if 1 < workers && workers <= files {
			ways[fmt.Sprint("staged", workers)] = func(d *byHand, f []durable.Named) error { return d.staged(f, workers) }
		}
	}
	return ways
}

// byHand is a directory that is written with no care for what fails.
type byHand struct {
	path   string
	prefix string // of the names
	dir    *os.File
}

// parallel has each worker create and sync one file after the other.
func (d *byHand) parallel(files []durable.Named, workers int) error {
	err := inParallel(len(files), workers, func(i int) error {
		f, err := d.create(files[i])
		return errors.Join(err, syncAndClose(f))
	})
	return errors.Join(err, d.publish(files))
}

// staged creates all files before it syncs any, so that they share the journal's commits.
func (d *byHand) staged(files []durable.Named, workers int) error {
	open := make([]*os.File, len(files))
	for i, f := range files {
		var err error
		if open[i], err = d.create(f); err != nil {
			return err
		}
	}
	err := inParallel(len(files), workers, func(i int) error { return syncAndClose(open[i]) })
	return errors.Join(err, d.publish(files))
}

func (d *byHand) create(f durable.Named) (*os.File, error) {
	file, err := os.OpenFile(d.temp(f.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(f.Data)
	return file, err
}

func (d *byHand) temp(name string) string { return filepath.Join(d.path, ".tmp-"+d.prefix+name) }

func syncAndClose(f *os.File) error { return errors.Join(f.Sync(), f.Close()) }

func (d *byHand) publish(files []durable.Named) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, os.Rename(d.temp(f.Name), filepath.Join(d.path, d.prefix+f.Name)))
	}
	return errors.Join(append(errs, d.dir.Sync())...)
}

// inParallel calls do with 0 to n-1. The caller is one of the workers.
func inParallel(n, workers int, do func(i int) error) error {
	queue, errs := make(chan int, n), make([]error, n)
	for i := range n {
		queue <- i
	}
	close(queue)
	work := func() {
		for i := range queue {
			errs[i] = do(i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	return errors.Join(errs...)
}
