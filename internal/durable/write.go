package durable

// How files are written: the steps, and what a crash leaves after each.

import (
	"slices"
	"sync"
)

// Named is one file: its plain name and its content.
type Named struct {
	Name string
	Data []byte
}

// Write makes each file hold exactly its data, creating or replacing it. The
// result has one element a file: nil if the file is durable, else the reason why
// it may not be. A failure of one file fails that file alone. After an error the
// name holds the whole old content or the whole new one, and the file may be
// there without being durable: the caller must write it again, whole, before it
// relies on it. If a name is given twice, the later data stays.
//
// The steps, and what a crash in or after each leaves:
//
//  1. Every file's data goes to a temporary file. A crash leaves every name as
//     it was, and temporary files, empty, torn or whole.
//  2. Every temporary file is synced and closed. A crash leaves the same.
//  3. Every temporary file is renamed to its name. A crash leaves each name with
//     its old content or its new one, whole, since nothing is renamed before its
//     content is synced. Which of the two is chance, each file by itself.
//  4. The directory is synced, once. From here on each name has its new content.
//
// A file that fails in steps 1 to 3 drops out, and its temporary file is removed.
// If step 4 fails, all files that were renamed fail. No descriptor is synced
// again after its sync has failed, because the kernel may by then have marked
// the lost pages clean and report success.
func (d *Dir) Write(files ...Named) []error {
	defer d.change(len(files))()
	return d.write(files...)
}

func (d *Dir) write(files ...Named) []error {
	temps := make([]*temp, len(files))
	for i, f := range files {
		temps[i] = &temp{Named: f, name: tempName()}
	}
	for open := range slices.Chunk(temps, maxOpen) {
		for _, t := range open {
			t.write(d.fs)
		}
		syncAll(open)
	}
	d.publish(temps)

	errs := make([]error, len(files))
	for i, t := range temps {
		errs[i] = wrap("write", t.Name, t.err)
	}
	return errs
}

// publish renames the files that are synced, removes those that failed, and syncs the directory.
func (d *Dir) publish(temps []*temp) {
	renamed := false
	for _, t := range temps {
		if t.err == nil {
			t.err = d.fs.Rename(t.name, t.Name)
			renamed = renamed || t.err == nil
		}
		if t.err != nil {
			// Also after a failed create, which may have created the file. If it can't be
			// removed now, Sweep does it.
			_ = d.fs.Remove(t.name)
		}
	}
	if !renamed {
		return
	}
	if err := d.fs.Sync(); err != nil {
		for _, t := range temps {
			if t.err == nil {
				t.err = err
			}
		}
	}
}

// maxOpen bounds the descriptors that one Write holds, maxSyncs how many of them
// it syncs at once. File systems commit syncs that wait together in one go: on ext4,
// 64 files take two thirds of the time that they take one after another, and 500 files a third
// to a quarter less than 16 at a time, and a fifth less if 256 of them are created before the
// first is synced than if 64 are.
const (
	maxOpen  = 256
	maxSyncs = 64
)

// temp is a file that Write is writing. After its first error nothing more is done with it.
type temp struct {
	Named
	name string // before it is renamed
	file File   // nil if it could not be created
	err  error
}

func (t *temp) write(fsys FS) {
	if t.err = checkName(t.Name); t.err != nil {
		return
	}
	if t.file, t.err = fsys.Create(t.name); t.err != nil {
		t.file = nil
		return
	}
	_, t.err = t.file.Write(t.Data)
}

// sync syncs the file unless it has failed, and closes it in any case.
func (t *temp) sync() {
	if t.file == nil {
		return
	}
	if t.err == nil {
		t.err = t.file.Sync()
	}
	if err := t.file.Close(); t.err == nil {
		t.err = err
	}
}

// syncAll syncs and closes temps. The caller is one of the workers, so a single
// file needs no other goroutine.
func syncAll(temps []*temp) {
	queue := make(chan *temp, len(temps))
	for _, t := range temps {
		queue <- t
	}
	close(queue)
	work := func() {
		for t := range queue {
			t.sync()
		}
	}
	var wg sync.WaitGroup
	for range min(len(temps), maxSyncs) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
