package durable_test

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

func everybodys([]byte) bool { return true }

// copyTo puts a file in place of another as an editor does, and syncs nothing. More can be written to it.
func copyTo(fsys durable.FS, name string, data []byte) (durable.File, error) {
	fsys.Remove("new") // a crash has left it
	f, err := fsys.Create("new")
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	return f, errors.Join(err, fsys.Rename("new", name))
}

// readAndNote is a process that relies on files, and returns the names of those that it has synced.
func readAndNote(t *testing.T, disk *keyringtest.Disk, names ...string) (synced []string) {
	t.Helper()
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "sync" && !durable.IsTemp(op.Name) {
			synced = append(synced, op.Name)
		}
		return keyringtest.Fault{}
	})
	defer disk.OnOp(nil)
	d := open(t, disk)
	d.LoadSynced()
	for _, name := range names {
		_, unsynced, err := d.ReadOwn(name, 1000, everybodys)
		must(t, errors.Join(unsynced, err))
	}
	must(t, d.NoteSynced(1))
	must(t, d.Close())
	return synced
}

// TestEachProcessSyncsWhatHasComeOrWasChanged since the one before, also if it has the same bytes. Without a note that this
// build reads it syncs all.
func TestEachProcessSyncsWhatHasComeOrWasChanged(t *testing.T) {
	disk, all := keyringtest.NewDisk(), []string{"a", "b", "c"}
	copied := func(names ...string) {
		fsys, err := disk.Open()
		must(t, err)
		for _, name := range names {
			f, err := copyTo(fsys, name, content(name))
			must(t, errors.Join(err, f.Close()))
		}
		must(t, fsys.Close())
	}
	note := func(text string) { disk.Plant(durable.SyncedName, 0o600, []byte(text)) }
	copied(all...)
	for i, step := range []struct {
		before func()
		want   []string
	}{
		{func() {}, all},
		{func() {}, nil},
		{func() { copied("b") }, []string{"b"}},
		{func() { copied("c", "b") }, []string{"b", "c"}},
		{func() {}, nil},
		{func() { disk.Unlink(durable.SyncedName) }, all},
		{func() { note("keyring synced 2\n") }, all},
		{func() { note(string(disk.Bytes(durable.SyncedName)[:30])) }, []string{"b", "c"}}, // cut short
		{func() { note("keyring synced 1\n\nx\n1 2 3\n1 2 x a\n1 2 3 a\n \n1 2 3 b") }, all},
		{func() {}, nil},
	} {
		step.before()
		if got := readAndNote(t, disk, all...); !slices.Equal(got, step.want) {
			t.Errorf("step %d: synced %q, want %q", i, got, step.want)
		}
	}
}

// TestFewFilesAreNotNoted: the next process may sync them again. And the note is none of the files that List tells of.
func TestFewFilesAreNotNoted(t *testing.T) {
	disk := keyringtest.NewDisk()
	disk.Plant("a", 0o600, content("a"))
	d := open(t, disk)
	_, _, err := d.ReadOwn("a", 1000, everybodys)
	must(t, errors.Join(err, d.NoteSynced(2)))
	if disk.Bytes(durable.SyncedName) != nil {
		t.Error("one is noted")
	}
	must(t, d.NoteSynced(1))
	if names, err := d.List(); disk.Bytes(durable.SyncedName) == nil || !slices.Equal(names, []string{"a"}) || err != nil {
		t.Errorf("noted %q; listed %q, %v", disk.Bytes(durable.SyncedName), names, err)
	}
	disk.Unlink(durable.SyncedName)
	must(t, d.NoteSynced(1))
	if b := disk.Bytes(durable.SyncedName); b != nil {
		t.Errorf("noted twice: %q", b)
	}
}

// TestWhatWasReadIsDurableWhateverIsKnown: random copies that nobody syncs, and that go on when they have been read, starts
// and crashes. What ReadOwn has taken and not called unsynced is there after a crash.
func TestWhatWasReadIsDurableWhateverIsKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &copies{T: t, disk: keyringtest.NewDisk(), files: map[string]durable.File{}, relied: map[string][]byte{}, failed: map[string]bool{}}
		c.start()
		t.Repeat(map[string]func(*rapid.T){"copy": c.copy, "grow": c.grow, "read": c.read, "restart": c.restart, "crash": c.crash})
	})
}

// copies is a directory into which files are copied while a process relies on them.
type copies struct {
	*rapid.T
	disk   *keyringtest.Disk
	fsys   durable.FS
	dir    *durable.Dir
	files  map[string]durable.File // that are still being copied
	relied map[string][]byte       // what was read
	failed map[string]bool         // whose sync has failed: only to write them again makes them durable
}

func (c *copies) must(err error) {
	if err != nil {
		c.Fatal(err)
	}
}

func (c *copies) start() {
	var err error
	c.fsys, err = c.disk.Open()
	c.must(err)
	c.dir = durable.New(c.fsys)
	c.dir.LoadSynced()
}

func (c *copies) name(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
}

func (c *copies) copy(t *rapid.T) {
	name := c.name(t)
	delete(c.relied, name)
	delete(c.failed, name)
	f, err := copyTo(c.fsys, name, content("key"))
	c.must(err)
	c.files[name] = f
}

func (c *copies) grow(t *rapid.T) {
	if f := c.files[c.name(t)]; f != nil {
		_, err := f.Write([]byte("more"))
		c.must(err)
	}
}

func (c *copies) read(t *rapid.T) {
	name, fails := c.name(t), rapid.Bool().Draw(t, "sync fails")
	c.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if fails && op.Kind == "sync" {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	b, unsynced, err := c.dir.ReadOwn(name, 1000, everybodys)
	c.disk.OnOp(nil)
	c.failed[name] = c.failed[name] || unsynced != nil
	if err == nil && !c.failed[name] {
		c.must(c.dir.Sync())
		c.relied[name] = b
	}
	if rapid.Bool().Draw(t, "note") {
		c.must(c.dir.NoteSynced(1))
	}
}

func (c *copies) restart(*rapid.T) {
	c.must(c.dir.Close())
	clear(c.files)
	c.start()
}

func (c *copies) crash(t *rapid.T) {
	c.disk = c.disk.Crash(rapid.SampledFrom(keyringtest.Losses).Draw(t, "loss"), rapid.Uint64().Draw(t, "seed"))
	for name, want := range c.relied {
		if got := c.disk.Bytes(name); !bytes.HasPrefix(got, want) {
			t.Fatalf("%s was relied on: %d bytes of %d are left", name, len(got), len(want))
		}
	}
	clear(c.failed)
	clear(c.files)
	c.start()
}
