// Probe is what the cluster's own tests run in pods: it serves, asks and resolves.
//
//	probe serve TEXT   answer every request on port 8080 with TEXT, until told to end
//	probe get URL      print the answer
//	probe lookup NAME  print the addresses, one a line
//	probe read FILE    print a file
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const patience = 5 * time.Second

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: probe serve|get|lookup|read ARGUMENT"))
	}
	action, argument := os.Args[1], os.Args[2]
	actions := map[string]func(string) (string, error){
		"serve": serve, "get": get, "lookup": lookup, "read": read,
	}
	run, known := actions[action]
	if !known {
		fail(fmt.Errorf("unknown action %q", action))
	}
	text, err := run(argument)
	if err != nil {
		fail(err)
	}
	fmt.Println(text)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "probe:", err)
	os.Exit(1)
}

func serve(text string) (string, error) {
	done, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	server := &http.Server{
		Addr: ":8080",
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
			fmt.Println(request.Method, request.URL.Path)
			fmt.Fprintln(answer, text)
		}),
	}
	go func() {
		<-done.Done()
		server.Close()
	}()
	fmt.Println("serving on", server.Addr)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return "", err
	}
	return "ended", nil
}

func get(url string) (string, error) {
	client := http.Client{Timeout: patience}
	answer, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return strings.TrimSpace(string(body)), err
}

func lookup(name string) (string, error) {
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(limit, name)
	return strings.Join(addresses, "\n"), err
}

func read(file string) (string, error) {
	content, err := os.ReadFile(file)
	return strings.TrimSpace(string(content)), err
}
