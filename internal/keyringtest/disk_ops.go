package keyringtest

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	"example.com/keyring/internal/durable"
)

// handle is a Disk that is open. It is the durable.FS.
type handle struct {
	disk   *Disk
	closed bool // under disk.mu
}

// do numbers an operation, asks the hook about it, and calls act with the answer
// and under the lock, unless the machine has crashed.
func (h *handle) do(op Op, act func(Fault) error) error {
	op, fault, err := h.ask(op)
	if err != nil {
		return err
	}
	d := h.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := h.usable(); err != nil { // since the hook was asked
		return err
	}
	if errors.Is(fault.Err, ErrCrashed) {
		d.crashed = true
		return ErrCrashed
	}
	if err := act(fault); err != nil {
		return &fs.PathError{Op: op.Kind, Path: "disk/" + op.Name, Err: err}
	}
	return nil
}

func (h *handle) ask(op Op) (Op, Fault, error) {
	d := h.disk
	d.mu.Lock()
	if err := h.usable(); err != nil {
		d.mu.Unlock()
		return op, Fault{}, err
	}
	d.seq++
	op.Seq = d.seq
	hook := d.hook
	d.mu.Unlock()
	if hook == nil {
		return op, Fault{}, nil
	}
	return op, hook(op), nil
}

func (h *handle) usable() error {
	if h.disk.crashed {
		return ErrCrashed
	}
	if h.closed {
		return fs.ErrClosed
	}
	return nil
}

// whole is the act of an operation that happens or does not.
func whole(effect func() error) func(Fault) error {
	return func(f Fault) error {
		if f.Err != nil && !f.Applied {
			return f.Err
		}
		err := effect()
		return cmp.Or(f.Err, err)
	}
}

func (h *handle) Create(name string) (durable.File, error) {
	d, f := h.disk, &file{handle: h, name: name, writable: true}
	err := h.do(Op{Kind: "create", Name: name}, func(fault Fault) error {
		err := whole(func() error {
			if d.names[name] != nil {
				return syscall.EEXIST
			}
			f.node = d.newInode(0o600)
			d.change(change{set: name, node: f.node})
			return nil
		})(fault)
		return f.opened(err)
	})
	return f.orNil(err)
}

func (h *handle) Open(name string) (durable.File, fs.FileInfo, error) {
	d, f := h.disk, &file{handle: h, name: name}
	var info fileInfo
	err := h.do(Op{Kind: "open", Name: name}, func(fault Fault) error {
		if fault.Err != nil {
			return fault.Err
		}
		f.node = d.names[name]
		if err := f.opened(f.node.openable()); err != nil {
			return err
		}
		info = f.node.info(name)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return f, info, nil
}

// openable returns why n, which may be nil, can't be opened for reading.
func (n *inode) openable() error {
	switch {
	case n == nil:
		return syscall.ENOENT
	case !n.mode.IsRegular():
		return durable.ErrNotRegular
	case n.mode&0o400 == 0:
		return syscall.EACCES
	}
	return nil
}

func (h *handle) Lstat(name string) (fs.FileInfo, error) {
	var info fileInfo
	err := h.do(Op{Kind: "lstat", Name: name}, whole(func() error {
		node := h.disk.names[name]
		if node == nil {
			return syscall.ENOENT
		}
		info = node.info(name)
		return nil
	}))
	if err != nil {
		return nil, err
	}
	return info, nil
}

func (h *handle) Rename(old, new string) error {
	d := h.disk
	return h.do(Op{Kind: "rename", Name: old, To: new}, whole(func() error {
		from, to := d.names[old], d.names[new]
		switch {
		case from == nil:
			return syscall.ENOENT
		case from == to:
			return nil
		case to != nil && to.mode.IsDir():
			return syscall.EISDIR
		case to != nil && from.mode.IsDir():
			return syscall.ENOTDIR
		}
		d.change(change{set: new, node: from, del: old})
		return nil
	}))
}

// Remove takes every directory for one that is not empty.
func (h *handle) Remove(name string) error {
	d := h.disk
	return h.do(Op{Kind: "remove", Name: name}, whole(func() error {
		node := d.names[name]
		switch {
		case node == nil:
			return syscall.ENOENT
		case node.mode.IsDir():
			return syscall.ENOTEMPTY
		}
		d.change(change{del: name})
		return nil
	}))
}

// List gives the names in reverse, so that nobody relies on their order.
func (h *handle) List() ([]string, error) {
	var names []string
	err := h.do(Op{Kind: "list"}, whole(func() error {
		names = slices.Sorted(maps.Keys(h.disk.names))
		slices.Reverse(names)
		return nil
	}))
	if err != nil {
		return nil, err
	}
	return names, nil
}

func (h *handle) Sync() error {
	d := h.disk
	return h.do(Op{Kind: "dirsync"}, whole(func() error {
		d.synced, d.changes = maps.Clone(d.names), nil
		return nil
	}))
}

// Close is no Op: nothing that it does can be lost.
func (h *handle) Close() error {
	d := h.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := h.usable(); err != nil {
		return err
	}
	h.closed = true
	d.opened = nil
	return nil
}

// file is one descriptor.
type file struct {
	handle   *handle
	name     string
	writable bool

	// Guarded by handle.disk.mu.
	node       *inode
	offset     int // of the next read
	syncFailed bool
	closed     bool
}

// opened counts f as open if err is nil.
func (f *file) opened(err error) error {
	if err == nil {
		f.handle.disk.files++
	}
	return err
}

func (f *file) orNil(err error) (durable.File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// do is handle.do for a descriptor that is open.
func (f *file) do(kind string, act func(Fault) error) error {
	return f.handle.do(Op{Kind: kind, Name: f.name}, func(fault Fault) error {
		if f.closed {
			return fs.ErrClosed
		}
		return act(fault)
	})
}

func (f *file) Read(p []byte) (n int, err error) {
	err = f.do("read", func(fault Fault) error {
		if fault.Err != nil {
			return fault.Err
		}
		if f.node.mode.IsDir() {
			return syscall.EISDIR
		}
		n = copy(p, f.node.data[f.offset:])
		f.offset += n
		return nil
	})
	if err == nil && n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, err
}

func (f *file) Write(p []byte) (n int, err error) {
	err = f.do("write", func(fault Fault) error {
		if !f.writable {
			return syscall.EBADF
		}
		n = len(p)
		if fault.Err != nil && (!fault.Applied || fault.Wrote > 0) {
			n = min(n, fault.Wrote)
		}
		f.node.data = append(f.node.data, p[:n]...)
		return fault.Err
	})
	return n, err
}

// Sync makes the content durable, unless a sync of this file has failed before:
// the kernel has then marked its pages clean, and reports success for nothing.
func (f *file) Sync() error {
	return f.do("sync", func(fault Fault) error {
		if f.syncFailed {
			f.handle.disk.resynced = append(f.handle.disk.resynced, f.name)
		}
		f.syncFailed = f.syncFailed || fault.Err != nil
		f.node.lost = f.node.lost || fault.Err != nil && !fault.Applied
		if !f.node.lost {
			f.node.synced = len(f.node.data)
		}
		return fault.Err
	})
}

// Stamp tells the file as it is from what it was: files only grow.
func (f *file) Stamp() (durable.Stamp, bool) {
	f.handle.disk.mu.Lock()
	defer f.handle.disk.mu.Unlock()
	return durable.Stamp{Inode: int64(f.node.id), Size: int64(len(f.node.data))}, true
}

// Close closes also when it fails.
func (f *file) Close() error {
	return f.do("close", func(fault Fault) error {
		f.closed = true
		f.handle.disk.files--
		return fault.Err
	})
}

// Chmod is no Op: nothing rests on a mode but who can read what is there.
func (f *file) Chmod(mode fs.FileMode) error {
	f.handle.disk.mu.Lock()
	defer f.handle.disk.mu.Unlock()
	f.node.mode = f.node.mode.Type() | mode
	return nil
}

func (n *inode) info(name string) fileInfo {
	return fileInfo{name: name, mode: n.mode, size: int64(len(n.data))}
}

// fileInfo is what an inode was when it was asked.
type fileInfo struct {
	name string
	mode fs.FileMode
	size int64
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }
