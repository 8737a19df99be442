package admin

// Files that are named by whoever runs this program, or that lie where others may write.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"filippo.io/age"
)

// maxFile is how much is read of any file but a backup.
const maxFile = 1 << 20

// readFile reads a small regular file.
func readFile(path string) ([]byte, error) {
	f, _, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes", maxFile)}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// openFile opens a regular file, which a symlink may name, and says how large it is. It does not wait for who
// writes into a FIFO, and refuses devices: some never end.
func openFile(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// readIdentities reads age identities.
func readIdentities(path string) ([]age.Identity, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("-identity: %w", err)
	}
	with, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("-identity: %w", err)
	}
	return with, nil
}

// writeNew writes a file that was not there, for its owner alone, and durably once its directory is synced too.
func writeNew(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
