// Package keyringtest is test support: what the tests of this module run against
// instead of real disks and networks, with faults when and where a test wants them.
package keyringtest

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"syscall"

	"example.com/keyring/internal/durable"
)

// ErrCrashed is the error of every operation since a Fault crashed the machine.
var ErrCrashed = errors.New("machine has crashed")

// Op is one operation on a Disk. Kind is "create", "write", "sync", "close",
// "rename", "remove", "dirsync", "open", "read", "list" or "lstat".
type Op struct {
	Seq  int    // counts from 1 over the life of the Disk
	Kind string // sync and close are a file's, dirsync the directory's
	Name string // as it was opened, for a file's operations; empty for the directory's
	To   string // rename's new name, else empty
}

// Fault is what becomes of an operation. The zero Fault lets it pass.
type Fault struct {
	// Err is returned by the operation. ErrCrashed stops the machine: this
	// operation and all later ones return it and have no effect.
	Err error

	// Applied lets the operation that fails with Err do its work all the same.
	Applied bool

	// Wrote is how many bytes a write that fails with Err puts down. Zero with
	// Applied is all of them.
	Wrote int
}

// Faults are the ways in which an operation goes wrong.
var Faults = []Fault{
	{Err: syscall.EIO},
	{Err: syscall.EIO, Applied: true},
	{Err: syscall.ENOSPC},
	{Err: syscall.ENOSPC, Applied: true},
	{Err: syscall.ENOSPC, Wrote: 50},
}

// Disk is one directory on a simulated disk, in memory. It knows what a running
// system sees, and apart from it what would survive a loss of power: content that
// was in the file when the file was synced, names that were there when the
// directory was synced. A file whose sync has failed is, as in Linux, silently
// never written again.
//
// It has no goroutine, clock or randomness of its own, takes any number of
// concurrent calls, and does the same for the same sequence of calls.
type Disk struct {
	mu       sync.Mutex // guards below
	hook     func(Op) Fault
	seq      int
	inodes   int
	names    map[string]*inode // as the running system sees them
	synced   map[string]*inode // as of the last directory sync
	changes  []change          // from synced to names, in order
	opened   *handle           // nil: nobody has it open
	crashed  bool
	files    int // open descriptors
	resynced []string
}

// inode is a file, under whichever names.
type inode struct {
	id     int // in order of creation
	mode   fs.FileMode
	data   []byte
	synced int  // so much of data is durable; files only grow
	lost   bool // a sync has failed: later ones do nothing, and say nothing
}

// change is one unsynced change of names: what it sets, then what it deletes.
type change struct {
	set  string
	node *inode // nil: sets nothing
	del  string // empty: deletes nothing
}

func (c change) apply(names map[string]*inode) {
	if c.node != nil {
		names[c.set] = c.node
	}
	delete(names, c.del)
}

// NewDisk returns an empty Disk.
func NewDisk() *Disk {
	return &Disk{names: map[string]*inode{}, synced: map[string]*inode{}}
}

// OnOp has hook decide about every operation from now on; nil lets all pass. The
// goroutine that does the operation calls it before, and holds no lock: hook may
// look at the Disk, crash copies of it, or block. Concurrent operations call it
// concurrently.
func (d *Disk) OnOp(hook func(Op) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = hook
}

// Open opens the directory. Until it is closed, a second Open is
// durable.ErrLocked. After a crash only Crash leads on.
func (d *Disk) Open() (durable.FS, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.crashed {
		return nil, ErrCrashed
	}
	if d.opened != nil {
		return nil, durable.ErrLocked
	}
	d.opened = &handle{disk: d}
	return d.opened, nil
}

// isCrashed reports whether its machine has crashed: then only Crash gives a disk that can be opened.
func (d *Disk) isCrashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

// Plant puts a durable file under name, replacing what is there. mode tells its
// kind; a regular file without the bit 0400 can't be opened.
func (d *Disk) Plant(name string, mode fs.FileMode, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	node := d.newInode(mode)
	node.data, node.synced = slices.Clone(data), len(data)
	d.names[name], d.synced[name] = node, node
}

// Unlink removes a name durably, without the knowledge of the process that has the disk open.
func (d *Disk) Unlink(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
	delete(d.synced, name)
}

// Names returns all names that a running system sees, sorted.
func (d *Disk) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}

// Bytes returns the content of name as a running system sees it; nil if there is
// no such name, not nil if the file is empty.
func (d *Disk) Bytes(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	node := d.names[name]
	if node == nil {
		return nil
	}
	return append([]byte{}, node.data...)
}

// Mode returns the kind and the permissions of what has a name, zero if nothing has.
func (d *Disk) Mode(name string) fs.FileMode {
	d.mu.Lock()
	defer d.mu.Unlock()
	if node := d.names[name]; node != nil {
		return node.mode
	}
	return 0
}

// OpenFiles returns how many files are open.
func (d *Disk) OpenFiles() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files
}

// Resynced returns the names of files of which one descriptor was synced again
// after its sync had failed. It must be empty: such a sync may report success for
// data that is lost.
func (d *Disk) Resynced() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.resynced)
}

func (d *Disk) newInode(mode fs.FileMode) *inode {
	d.inodes++
	return &inode{id: d.inodes, mode: mode}
}

// change changes the names as the running system sees them.
func (d *Disk) change(c change) {
	c.apply(d.names)
	d.changes = append(d.changes, c)
}
