package durable

import (
	"fmt"
	"os"
)

// ReadFile returns the content of the regular file of at most limit bytes that path names, itself or by symlinks: secrets
// are mounted as those. It waits for nothing: a FIFO, socket, device or directory is ErrNotRegular, and is not opened if
// it was there before the call. A larger file is ErrTooLarge. Whose file it is makes no difference.
func ReadFile(path string, limit int64) ([]byte, error) {
	named, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !named.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: %w: %v", path, ErrNotRegular, named.Mode().Type())
	}
	return readOpened(path, limit)
}

// readOpened is ReadFile of what looked like a regular file: another may have taken its place since.
func readOpened(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noWait, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %v", ErrNotRegular, info.Mode().Type())
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	b, err := readAll(f, info.Size(), limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}
