package durable

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how old the last change of a file must be for a stamp: within the same tick of the system's clock, another change
// would leave it as it is.
const settled = 2 * time.Second

// hasStamps reports whether a directory is on a file system of which it is known that every change of a file sets its ctime,
// by a clock that nobody but this system moves, and that no file gets the inode and the ctime of another.
func hasStamps(dir *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &st) != nil {
		return false
	}
	switch int64(st.Type) & 0xffffffff {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	}
	return false
}

// stampAt is the stamp of an open file at a time.
func stampAt(f *os.File, now time.Time) (s Stamp, ok bool) {
	info, err := f.Stat()
	if err != nil {
		return s, false
	}
	st := info.Sys().(*syscall.Stat_t)
	changed := time.Unix(st.Ctim.Unix())
	return Stamp{Inode: int64(st.Ino), Size: st.Size, Changed: changed.UnixNano()}, now.Sub(changed) >= settled
}
