package durable

// Which files are known to have been synced.
//
// To sync a file that has nothing to be synced still asks the device, and most of a start with thousands of files would be spent
// on that. So a file in the directory notes which files ReadOwn has synced, as they were then. Files that have come or were
// changed since are not in it as they are now, and are synced; so are all where it is lost, damaged or not to be relied on.

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// SyncedName is the note of the files that were synced. It may be removed at any time.
const SyncedName = ".synced"

const (
	syncedHead = "keyring synced 1\n"
	maxSynced  = 64 << 20 // bytes: more than half a million files
)

// Stamp tells a file from every other, and as it is from what it was: no change of it, by anybody, keeps it.
type Stamp struct{ Inode, Size, Changed int64 }

// stamped is a File that may have a stamp: of what Read has returned, if nothing was written since.
type stamped interface{ Stamp() (s Stamp, ok bool) }

func stampOf(f File) (Stamp, bool) {
	if f, ok := f.(stamped); ok {
		return f.Stamp()
	}
	return Stamp{}, false
}

// syncFile syncs a file that was read, unless it is known to have been synced as it is.
func (d *Dir) syncFile(name string, f File) error {
	stamp, ok := stampOf(f) // before the sync: what is written after it changes the stamp
	if ok && d.isSynced(name, stamp) {
		return nil
	}
	if err := f.Sync(); err != nil {
		if hasNoSync(err) {
			return nil
		}
		return err
	}
	if ok {
		d.noting.Lock()
		defer d.noting.Unlock()
		d.synced[name] = stamp
		d.unnoted++
	}
	return nil
}

func (d *Dir) isSynced(name string, now Stamp) bool {
	d.noting.Lock()
	defer d.noting.Unlock()
	was, ok := d.synced[name]
	return ok && was == now
}

// LoadSynced reads which files an earlier process has synced, and noted with NoteSynced: ReadOwn does not sync those again.
// A note that can't be read costs only the time for that.
func (d *Dir) LoadSynced() {
	b, err := d.Read(SyncedName, maxSynced)
	if err != nil {
		return
	}
	d.noting.Lock()
	defer d.noting.Unlock()
	d.synced = parseSynced(string(b))
}

// NoteSynced has the next process know which files ReadOwn has synced, if at least so many of them have not been noted yet.
func (d *Dir) NoteSynced(least int) error {
	d.noting.Lock()
	synced, unnoted := maps.Clone(d.synced), d.unnoted
	d.noting.Unlock()
	if unnoted < least {
		return nil
	}
	names, err := d.List()
	if err != nil {
		return err
	}
	b := []byte(syncedHead)
	for _, name := range names {
		if s, ok := synced[name]; ok && !strings.Contains(name, "\n") {
			b = fmt.Appendf(b, "%d %d %d %s\n", s.Inode, s.Size, s.Changed, name)
		}
	}
	if err := d.Write(Named{Name: SyncedName, Data: b})[0]; err != nil {
		return err
	}
	d.noting.Lock()
	defer d.noting.Unlock()
	d.unnoted -= unnoted
	return nil
}

// parseSynced reads a note. What is not as NoteSynced writes it is no line, and means nothing.
func parseSynced(text string) map[string]Stamp {
	synced := map[string]Stamp{}
	text, ok := strings.CutPrefix(text, syncedHead)
	if !ok {
		return synced
	}
	for line := range strings.Lines(text) {
		line, ended := strings.CutSuffix(line, "\n")
		words := strings.SplitN(line, " ", 4)
		if !ended || len(words) < 4 {
			continue
		}
		var n [3]int64
		bad := false
		for i := range n {
			var err error
			n[i], err = strconv.ParseInt(words[i], 10, 64)
			bad = bad || err != nil
		}
		if !bad {
			synced[words[3]] = Stamp{n[0], n[1], n[2]}
		}
	}
	return synced
}
