package admin

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"example.com/keyring"
)

// CommandOptions configures Command. The zero value is for a host whose Handlers admit anyone who reaches
// them.
type CommandOptions struct {
	// Program names the host's program, and the server that is asked without -server. Use the Program of
	// Config.
	Program Program
	// HTTP sends the requests: see NewClient. Nil means http.DefaultClient.
	HTTP *http.Client
	// Restore, if it is set, implements the command restore: it makes the directory of a server from a
	// backup, with node.Restore or keyring.Restore. args are the arguments before the backup, as many as
	// RestoreArgs has words.
	Restore     func(ctx context.Context, args []string, backup io.Reader, o keyring.RestoreOptions) (keyring.Manifest, error)
	RestoreArgs string
	// Usage are lines about the host's own commands. They are printed before the commands of this package
	// when all are listed.
	Usage string
	// Stdout and Stderr receive the output. Nil means those of the process.
	Stdout, Stderr io.Writer
}

// usageLines are the commands: how each is called, and what it does.
const usageLines = `[-server URL] keys status [-json]       keys, servers, problems
[-server URL] keys rotate [-publish 5m] [-full] [-compromised]       make a new key; without -publish it signs at once: for emergencies
[-server URL] keys remove [-force] [-now] ID       re-encrypt the key's data, then remove it and end its tokens; -force: at once, and that data is lost; -now: without time to undo it
[-server URL] keys adopt ID       adopt the key of a file that the keyring does not know
[-server URL] keys rewrap       rewrap that server's key files under its present KEKs alone
[-server URL] servers add [-addr HOST:PORT] [-nonvoter] ID       let a server join, or change its address
[-server URL] servers remove [-force] ID       remove it; refused while too few others hold a key
[-server URL] servers promote ID       give it a vote; it must hold every key
[-server URL] servers demote ID       take its vote away; it stays a member with its keys
[-server URL] servers lead [ID]       transfer the leadership to that server, or to any
[-server URL] servers token [-ttl 1h] ID       print a token with which that server may join
[-server URL] servers tokens       list the tokens that have not ended
[-server URL] servers withdraw TOKEN-ID       end a token
[-server URL] backup -to RECIPIENT,... FILE        back up everything, for age recipients; prints the SHA-256
verify -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] BACKUP       check that a backup can be restored
restore -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] [-unauthenticated] [-data-only] [-force] RESTOREARGS BACKUP       make the directory of a server
inspect [-kek FILE,...] KEYSTORE-DIR       list the files there; a star marks the KEKs that open a key
`

// Command runs an operator's command: keys, servers, backup, verify, restore or inspect, with its arguments.
// -server URL may come before it. A host's CLI passes the rest of its own arguments on. -h lists the
// commands. The package documentation has more.
//
// Print the error, prefixed by the program's name, and exit with ExitStatus. Command never sends control
// characters from a server or a file to a terminal.
func Command(ctx context.Context, args []string, o CommandOptions) error {
	c := newCLI(o)
	fs := flag.NewFlagSet(c.program.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	server := fs.String("server", c.program.Server, "")
	if err := fs.Parse(args); err != nil {
		return c.help("", usage{err})
	}
	name, rest := fs.Arg(0), fs.Args()[min(1, fs.NArg()):]
	if (name == "keys" || name == "servers") && len(rest) > 0 {
		name, rest = name+" "+rest[0], rest[1:]
	}
	switch name {
	case "keys -h", "keys -help", "keys --help", "servers -h", "servers -help", "servers --help":
		return c.help("", flag.ErrHelp)
	}
	run, known := c.commands()[name]
	if !known {
		return c.help("", usage{fmt.Errorf("there is no command %q", name)})
	}
	if asksServer(name) && !wantsHelp(rest) {
		if *server == "" {
			return c.help(name, usage{errors.New("-server is missing")})
		}
		var err error
		if c.client, err = NewClient(*server, o.HTTP); err != nil {
			return c.help(name, usage{fmt.Errorf("-server: %w", err)})
		}
	}
	return c.help(name, run(ctx, rest))
}

// asksServer reports whether a command does. The others read files.
func asksServer(name string) bool {
	return strings.HasPrefix(name, "keys ") || strings.HasPrefix(name, "servers ") || name == "backup"
}

func wantsHelp(args []string) bool {
	return len(args) > 0 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help")
}

// ExitStatus returns the exit status for an error of Command:
//
//   - 0: no error.
//   - 1: something failed, such as a disk, or a server that does not answer or refuses.
//   - 2: wrong usage.
//   - 3: the thing that was checked is not good. verify: the backup can't be restored with these identities.
//     inspect: something is wrong with a file, no given KEK opens it, or there is no key. keys status: there
//     is a problem that is more than a notice.
func ExitStatus(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usage)):
		return 2
	case errors.As(err, new(finding)):
		return 3
	}
	return 1
}

// usage is an error of the one who has called the program.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// finding says that all went well but for what was looked at, which is not good.
type finding struct{ error }

func (f finding) Unwrap() error { return f.error }

// cli is what the commands work with.
type cli struct {
	client   *Client // nil where no server is asked
	program  Program
	options  CommandOptions
	out      io.Writer
	warn     io.Writer
	terminal io.Writer // what shows progress, or io.Discard
}

func newCLI(o CommandOptions) *cli {
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	return &cli{program: o.Program.withDefaults(), options: o, out: printable{o.Stdout}, warn: printable{o.Stderr}, terminal: watched(o.Stderr)}
}

func (c *cli) commands() map[string]func(context.Context, []string) error {
	all := map[string]func(context.Context, []string) error{
		"keys status":      c.status,
		"keys rotate":      c.rotate,
		"keys remove":      c.remove,
		"keys adopt":       c.adopt,
		"keys rewrap":      c.rewrap,
		"servers add":      c.addServer,
		"servers remove":   c.removeServer,
		"servers promote":  c.promoteServer,
		"servers demote":   c.demoteServer,
		"servers lead":     c.transfer,
		"servers token":    c.joinToken,
		"servers tokens":   c.joinTokens,
		"servers withdraw": c.withdrawToken,
		"backup":           c.backup,
		"verify":           c.verify,
		"inspect":          c.inspect,
	}
	if c.options.Restore != nil {
		all["restore"] = c.restore
	}
	return all
}

// usageOf returns the lines that say how a command is called, or how all are if it is none.
func (c *cli) usageOf(command string) string {
	var all, own strings.Builder
	all.WriteString(c.options.Usage)
	for line := range strings.Lines(usageLines) {
		if strings.HasPrefix(line, "restore ") && c.options.Restore == nil {
			continue
		}
		words := strings.Replace(line, "RESTOREARGS ", strings.TrimLeft(c.options.RestoreArgs+" ", " "), 1)
		all.WriteString(c.program.Name + " " + words)
		if strings.HasPrefix(strings.TrimPrefix(line, "[-server URL] "), command+" ") {
			own.WriteString(c.program.Name + " " + words)
		}
	}
	return cmp.Or(own.String(), all.String())
}

// help tells somebody who has called a command in a wrong way how it is called. It is no error to ask for that.
func (c *cli) help(command string, err error) error {
	switch {
	case errors.Is(err, flag.ErrHelp):
		var of asked
		errors.As(err, &of)
		_, err = io.WriteString(c.out, c.usageOf(command)+of.flags)
	case errors.As(err, new(usage)):
		err = usage{fmt.Errorf("%w\n%s", err, strings.TrimSuffix(c.usageOf(command), "\n"))}
	}
	return err
}

// flags parses those of a command, and wants so many arguments beside them.
func flags(fs *flag.FlagSet, args []string, n int) ([]string, error) {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil, asked{flagLines(fs)}
	} else if err != nil {
		return nil, usage{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	if fs.NArg() != n {
		return nil, usage{fmt.Errorf("%s takes %s after its flags, not %d", fs.Name(), arguments(n), fs.NArg())}
	}
	return fs.Args(), nil
}

// asked is flag.ErrHelp for a command, with a line for each of its flags.
type asked struct{ flags string }

func (asked) Error() string     { return flag.ErrHelp.Error() }
func (asked) Is(err error) bool { return err == flag.ErrHelp }

// flagLines are what the flags of a command are, a line each.
func flagLines(fs *flag.FlagSet) string {
	var b strings.Builder
	fs.VisitAll(func(f *flag.Flag) {
		value, is := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, "    %-20s %s\n", strings.TrimSpace("-"+f.Name+" "+value), is)
	})
	return b.String()
}

func arguments(n int) string {
	switch n {
	case 0:
		return "no arguments"
	case 1:
		return "1 argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

const (
	statusTime = 5 * time.Second  // for keys status: the server that is asked gives the others peerTime
	waitTime   = 90 * time.Second // for what waits for a leader, which takes 30 seconds at most
)

// within is for what is answered at once: a server that takes connections and hangs would keep its caller for
// ever.
func (c *cli) within(ctx context.Context, limit time.Duration, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := call(ctx)
	if hangs(err) {
		err = fmt.Errorf("%s accepts connections but has not answered within %v: its process or its disk may hang. Ask another server with -server: it says what to do about this one: %w", c.client.url, limit, err)
	}
	return err
}
