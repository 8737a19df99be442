package admin

// The commands about backups.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"example.com/keyring"
)

// backup writes a file that verify finds good, or none, and confirms it when it is safe. It never overwrites
// one.
func (c *cli) backup(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("backup", flag.ContinueOnError)
	to := fs.String("to", "", "age `recipients`, comma-separated, to whom the backup is encrypted")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if *to == "" {
		return usage{errors.New("backup: -to is missing")}
	}
	target := args[0]
	// Before the work, and again by place after it.
	if _, err := os.Lstat(target); err == nil {
		return fmt.Errorf("%s exists already", target)
	}
	// A name that nobody else has, for what a crash leaves must not be in the way of the next backup.
	part, err := os.CreateTemp(filepath.Dir(target), filepath.Base(target)+".*.part")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) // which is gone if all went well
	c.warnOfParts(filepath.Dir(target), filepath.Base(part.Name()))
	p := &progress{terminal: c.terminal, command: "backup"}
	made, err := c.client.Backup(ctx, io.MultiWriter(part, p), strings.Split(*to, ",")...)
	p.end()
	if err == nil {
		err = part.Sync()
	}
	if err := errors.Join(err, part.Close()); err != nil {
		return err
	}
	if err := place(part.Name(), target); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(target)); err != nil { // or a crash may take the name away again
		return err
	}
	fmt.Fprintf(c.out, "%x  %s\n", made.SHA256, line(target))
	if err := c.confirm(ctx, made.SHA256); err != nil {
		c.warning("the backup is good, but the cluster has not noted it, so the status may still ask for a backup. Make another one:", flat(err.Error()))
	}
	c.warning("keep the SHA-256 or the signer in a place where those who can write the file can't write; signed by", signedBy(made.Signer))
	return nil
}

// warning is said beside what a command prints.
func (c *cli) warning(text, what string) {
	fmt.Fprintf(c.warn, "%s: %s %s\n", c.program.Name, text, what)
}

// confirmTime is for the answer to a confirmation: the backup is safe without it.
const confirmTime = 30 * time.Second

// confirm tells the cluster that a backup is safe.
func (c *cli) confirm(ctx context.Context, sum [32]byte) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	defer cancel()
	return c.client.ConfirmBackup(ctx, sum)
}

// parts are the names of backups that are being made, or that were cut off.
var parts = regexp.MustCompile(`\.[0-9]+\.part$`)

// warnOfParts names what a backup in that directory has left that was cut off, by a crash say. It may be one
// that is being made now, so it is left there. own is the name of this backup's own.
func (c *cli) warnOfParts(dir, own string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the backup says what is wrong with the directory
	}
	for _, e := range entries {
		if e.Name() != own && e.Type().IsRegular() && parts.MatchString(e.Name()) {
			c.warning(line(filepath.Join(dir, e.Name())), "is an interrupted backup, and can't be restored: delete it, unless a backup is being made there now")
		}
	}
}

// place renames a file to a name that nobody has: it takes the name first, which fails if anybody has come
// before, and then renames over the empty file there, which is its own. A crash in between leaves that. A
// link would do both at once, but the file systems of many removable disks have none.
func place(from, to string) error {
	err := writeNew(to, nil)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already", to)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// backupFile is what verify and restore read, and what they require of it.
type backupFile struct {
	path string
	want keyring.VerifyOptions
}

// backupFlags parses the arguments of verify and restore, of which the last is the backup.
func backupFlags(fs *flag.FlagSet, args []string, n int) ([]string, backupFile, error) {
	identity := fs.String("identity", "", "a `file` with an age identity of a recipient")
	var b backupFile
	fs.Func("sha256", "the SHA-256 `sum` that the backup must have", func(text string) (err error) {
		b.want.Digest, err = parseSum(text)
		return err
	})
	fs.TextVar(&b.want.Signer, "signer", keyring.BackupSigner{}, "the `key` that must have signed the backup: keys status shows it")
	fs.StringVar(&b.want.Cluster, "cluster", "", "the `ID` of the cluster that must have made the backup")
	args, err := flags(fs, args, n)
	if err != nil {
		return nil, backupFile{}, err
	}
	if *identity == "" {
		return nil, backupFile{}, usage{fmt.Errorf("%s: -identity is missing", fs.Name())}
	}
	b.path = args[n-1]
	b.want.Identities, err = readIdentities(*identity)
	return args, b, err
}

// tell prints what is in a backup.
func tell(out io.Writer, m keyring.Manifest) {
	fmt.Fprintf(out, "%x: %d keys and all data as of log index %d, %s\n", m.SHA256, len(m.Keys), m.Raft.Index, m.Created.UTC().Format("2006-01-02 15:04:05 MST"))
	fmt.Fprintf(out, "cluster %s, signed by %s\n", line(m.Cluster), signedBy(m.Signer))
}

func signedBy(signer keyring.BackupSigner) string {
	if signer == (keyring.BackupSigner{}) {
		return "nobody: an older build made it"
	}
	return signer.String()
}

// read has f read a backup, shows how far it is, and prints what is in it.
func (c *cli) read(command string, b backupFile, f func(io.Reader) (keyring.Manifest, error)) error {
	file, size, err := openFile(b.path)
	if err != nil {
		return err
	}
	defer file.Close()
	p := &progress{terminal: c.terminal, command: command, size: size}
	m, err := f(io.TeeReader(file, p))
	p.end()
	if err != nil {
		return err
	}
	tell(c.out, m)
	return nil
}

// verify reads a whole backup.
func (c *cli) verify(ctx context.Context, args []string) error {
	_, b, err := backupFlags(flag.NewFlagSet("verify", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	return c.read("verify", b, func(r io.Reader) (keyring.Manifest, error) {
		m, err := keyring.VerifyBackupContext(ctx, r, b.want)
		if err != nil && !errors.As(err, new(*fs.PathError)) { // which says nothing of the backup: it was not read
			err = finding{err}
		}
		return m, err
	})
}

// restore makes the directory of one server from a backup, as the host does that.
func (c *cli) restore(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("restore", flag.ContinueOnError)
	var o keyring.RestoreOptions
	fs.BoolVar(&o.Unauthenticated, "unauthenticated", false, "accept any backup, whoever made it")
	fs.BoolVar(&o.DataOnly, "data-only", false, "make a new cluster that decrypts the data, for a drill")
	fs.BoolVar(&o.Force, "force", false, "restore even if another server of the cluster answers: never beside a cluster that runs")
	n := len(strings.Fields(c.options.RestoreArgs))
	args, b, err := backupFlags(fs, args, n+1)
	if err != nil {
		return err
	}
	o.Identities, o.Digest, o.Signer, o.Cluster = b.want.Identities, b.want.Digest, b.want.Signer, b.want.Cluster
	if o.Digest == ([32]byte{}) && o.Signer == (keyring.BackupSigner{}) && !o.Unauthenticated {
		return usage{errors.New("restore: nothing proves who wrote the backup: -sha256, -signer or -unauthenticated is missing")}
	}
	return c.read("restore", b, func(r io.Reader) (keyring.Manifest, error) {
		return c.options.Restore(ctx, args[:n], r, o)
	})
}
